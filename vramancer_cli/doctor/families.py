"""Whether the modelling code of every supported family imports: nothing else shows what a build has left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from vramancer_cli.doctor.finding import Check, Finding, Observation

NAME: Final = "model families"
_FAMILY_S: Final = 120.0

Progress = Callable[[int, int, str], None]
"""(families done, families in all, the one that is next)."""


def examine_families(progress: Progress) -> tuple[Finding, ...]:
    """One finding for all families, then one for each whose code does not import."""
    started_s = time.monotonic()
    families: list[str] = []
    listed = Check(NAME, lambda: _list_into(families), _FAMILY_S).run()
    if listed.state == "failed":
        return (listed,)
    broken: list[Finding] = []
    for done, family in enumerate(families):
        progress(done, len(families), family)
        found = _check(family).run()
        broken += [found] if found.state == "failed" else []
    progress(len(families), len(families), "")
    return (_sum(len(families), len(broken), time.monotonic() - started_s), *broken)


def _list_into(families: list[str]) -> Observation:
    from vramancer_cli.engine.families import supported_families

    families.extend(supported_families())
    return Observation("")


def _check(family: str) -> Check:
    def look() -> Observation:
        from vramancer_cli.engine.families import import_modelling

        return Observation(import_modelling(family).__name__)

    return Check(f"family {family}", look, _FAMILY_S)


def _sum(count: int, broken: int, took_s: float) -> Finding:
    words = f"{count - broken} of {count} import, in {took_s:.1f} s"
    whole = count > 0 and not broken
    return Finding(NAME, "ok" if whole else "failed", words, "" if whole else "Install VRAMancer again.")
