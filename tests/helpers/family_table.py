"""`make families`: every family through the matrix, into docs/families.md; fails where a family was exact before.

python -m tests.helpers.family_table [FAMILY...]     without names: all, and the page is written again

A run that was stopped goes on where it was. Minutes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.helpers.family_matrix import PROMPTS, TOLERANCE, Outcome
from tests.helpers.family_runs import forget, outcomes
from vramancer_cli.engine.families import WHOLE_ONLY, declared_families

PAGE: Final = Path(__file__).parents[2] / "docs" / "families.md"
UNPLANNED: Final = (
    "bitnet", "codegen", "diffllama", "falcon", "gpt2", "gpt_neox_japanese", "gptj", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2",
    "nanochat", "nemotron", "olmoe", "opt", "persimmon", "phimoe", "stablelm", "xglm",
)  # fmt: skip
"""Families without a pipeline plan whose layers are found all the same."""

_HEAD: Final = f"""# Families

Written by `make families`. Each family as a tiny model with random weights, saved as a checkpoint and loaded by
VRAMancer, in float32 on a CPU, against the same checkpoint in transformers, unsplit.

- **split**: prefill in one piece, cut at every layer boundary in turn, gives bit for bit what it gives uncut.
- **paged**: {len(PROMPTS)} sequences of {min(PROMPTS)} to {max(PROMPTS)} tokens in one batch, every layer a stage of
  its own, prompts in chunks, then decoding: logits within {TOLERANCE} of transformers', and the same greedy tokens,
  with more than 0.001 between the two best logits at each one. *together*: all sequences pass in one row;
  *one by one*: each passes alone, with the family's own attention and cache. `doge` gets prompts without a
  token twice: it chooses between keys, and which of two equal ones is up to rounding, in transformers too.
- **quantised**: the same paged run with the layers' weights in int8, and in int4, every layer a stage of its own,
  against the same quantised model in one stage (grade *stable*): the same tokens, and how far a logit differs at most,
  up to {TOLERANCE}. What rounding itself costs is another matter: [quantisation.md](quantisation.md). *stays plain*: no
  layer has weights that are quantised (plain linear layers, experts in one tensor).
- **max difference**: of the logits, split and paged, in float32.
- **mechanisms**: what the tiny model has switched on, checked while it runs.

"""
_COLUMNS: Final = ("family", "split", "paged", "quantised", "max difference", "mechanisms")
_EXACT: Final = re.compile(r"^\| `(\w+)` \| exact \| exact")
_QUANTISED: Final = re.compile(r"^\| `(\w+)` (?:\|[^|]*){2}\| int8 ")


def main(names: Sequence[str]) -> int:
    planned, unplanned = (names, ()) if names else (declared_families(), UNPLANNED)
    found = outcomes([*planned, *unplanned])
    missing = lost(found)
    if not names:
        PAGE.write_text(_page(found[: len(planned)], found[len(planned) :]), "utf-8")
        forget()
    exact = sum(outcome.exact for outcome in found)
    print(f"{exact} of {len(found)} exact; lost: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


def lost(found: Sequence[Outcome]) -> list[str]:
    """What the committed page has and this run has not."""
    exact = {outcome.family for outcome in found if not outcome.exact} & exact_before()
    quantised = {outcome.family for outcome in found if not outcome.quantised_runs} & quantised_before()
    return [*sorted(exact), *(f"{family} quantised" for family in sorted(quantised))]


def exact_before() -> set[str]:
    """The families that the committed page calls exact."""
    return _named(_EXACT)


def quantised_before() -> set[str]:
    """Those that it calls quantised."""
    return _named(_QUANTISED)


def _named(row: re.Pattern[str]) -> set[str]:
    lines = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
    return {match[1] for line in lines if (match := row.match(line))}


def _page(planned: Sequence[Outcome], unplanned: Sequence[Outcome]) -> str:
    exact = sum(outcome.exact for outcome in planned)
    parts = [_HEAD, f"{exact} of {len(planned)} families that declare a pipeline plan (or whose text part does).\n\n"]
    parts += [_table(planned), "\n## Without a pipeline plan\n\n", _table(unplanned)]
    failed = [outcome for outcome in (*planned, *unplanned) if not _is_right(outcome)]
    reasons = "".join(f"- `{outcome.family}`: {outcome.reason or 'differs'}\n" for outcome in failed)
    parts += ["\n## Not exact\n\n" + reasons] if failed else []
    return "".join(parts) + "\n## Refused at load\n\n" + "".join(map(_refused, WHOLE_ONLY))


def _is_right(outcome: Outcome) -> bool:
    return outcome.exact and (outcome.quantised_runs or not outcome.quantised)


def _refused(family: str) -> str:
    option, reason = WHOLE_ONLY[family]
    return f"- `{family}`{f' with `{option}`' if option else ''}: {reason}.\n"


def _table(outcomes: Sequence[Outcome]) -> str:
    head = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}\n"
    return head + "".join(_row(outcome) for outcome in outcomes)


def _row(outcome: Outcome) -> str:
    split = "exact" if outcome.split_bits else "no"
    way = "together" if outcome.ragged else "one by one"
    paged = f"exact, {way}" if outcome.paged_exact else "no"
    most = max(outcome.whole_difference, outcome.paged_difference)
    formats = ", ".join(f"{name} {difference:.0e}" for name, difference in outcome.quantised.items())
    quantised = formats if outcome.quantised_runs else "no" if outcome.quantised else "stays plain"
    cells = (f"`{outcome.family}`", split, paged, quantised, f"{most:.1e}", ", ".join(outcome.mechanisms))
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
