"""Measurements that people run: figures with their goals, side by side in one run. No tests, and not in the program."""
