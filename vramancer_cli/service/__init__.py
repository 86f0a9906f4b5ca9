"""The node as a service of the system: systemd, launchd, or Task Scheduler, always of one user and never of root's.

`contracts` holds the values, one file per system says what is written and which commands run, `installation` does it.
Standard library and the house's errors only: the one-file program runs this before it has unpacked anything.
"""
