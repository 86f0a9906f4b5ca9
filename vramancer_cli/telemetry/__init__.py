"""Logs (and later metrics and traces) of the house. Never imports an upper room."""
