"""Hostile input for every door of the program: wire frames, the two ways to join, and the HTTP API.

    python -m fuzz all [--frames N] [--handshakes N] [--requests N] [--seed S]
    python -m fuzz frames|handshakes|requests [--seed S] [--case I]

Every case follows from a seed and a number, both of which are printed. What breaks is written to `fuzz/crashes/`
with the command that runs it again; once it is mended it belongs into `tests/transport/fuzz_corpus/`. Nothing of the
program imports this package.
"""
