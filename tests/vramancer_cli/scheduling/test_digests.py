"""Digests stand for all tokens up to a block's end, and for nothing else."""

from __future__ import annotations

from vramancer_cli.scheduling.digests import chained_digest


def test_a_digest_depends_on_every_token_before_it() -> None:
    first = chained_digest(b"", (1, 2))
    assert first == chained_digest(b"", [1, 2])
    assert len({first, chained_digest(b"", (2, 1)), chained_digest(b"", (1, 2, 0)), chained_digest(first, (1, 2))}) == 4


def test_tokens_do_not_run_into_each_other() -> None:
    assert chained_digest(b"", (1, 256)) != chained_digest(b"", (256, 1))
    assert chained_digest(b"", (1,)) != chained_digest(b"", (1, 0))
    assert chained_digest(b"", (2**40,)) != chained_digest(b"", (0,))
