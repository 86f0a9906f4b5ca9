"""One verb, one file; the only place that knows a terminal. Never imports torch or transport."""
