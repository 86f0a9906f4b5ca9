"""Is this installation whole, and what can this machine do: checks that each look at one thing and say what they found.

Beside `node`, on the same floor: may use every room below. Never typer, rich, torch or `node`.
"""
