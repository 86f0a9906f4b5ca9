"""Hours of traffic on a real cluster that is hurt again and again, and what is found out about it afterwards."""
