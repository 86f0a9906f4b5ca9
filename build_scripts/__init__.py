"""Building, training and measuring: scripts that developers run. Not part of the program."""
