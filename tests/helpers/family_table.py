"""`make families`: every family through the matrix, into docs/families.md; fails where a family was exact before.

python -m tests.helpers.family_table [FAMILY...]     without names: all, and the page is written again
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from transformers.utils import logging

from tests.helpers.family_matrix import PROMPTS, TOLERANCE, Outcome, examine
from vramancer_cli.engine.families import supported_families

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
  *one by one*: each passes alone, with the family's own attention and cache.
- **quantised**: not tried.
- **max difference**: of the logits, split and paged.
- **mechanisms**: what the tiny model has switched on, checked while it runs.

"""
_COLUMNS: Final = ("family", "split", "paged", "quantised", "max difference", "mechanisms")
_EXACT: Final = re.compile(r"^\| `(\w+)` \| exact \| exact")


def main(names: Sequence[str]) -> int:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    planned, unplanned = _examined(names or supported_families()), _examined(() if names else UNPLANNED)
    found = {outcome.family for outcome in (*planned, *unplanned) if outcome.exact}
    lost = sorted((exact_before() & {o.family for o in (*planned, *unplanned)}) - found)
    if not names:
        PAGE.write_text(_page(planned, unplanned))
    print(f"{len(found)} of {len(planned) + len(unplanned)} exact; lost: {', '.join(lost) or 'none'}")
    return 1 if lost else 0


def exact_before() -> set[str]:
    """The families that the committed page calls exact."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {match[1] for line in lines if (match := _EXACT.match(line))}


def _examined(names: Iterable[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for name in names:
        started_s = time.monotonic()
        outcomes.append(examine(name))
        verdict = "exact" if outcomes[-1].exact else f"NOT EXACT {outcomes[-1].reason}"
        print(f"{name:24} {verdict}  {time.monotonic() - started_s:.1f} s", flush=True)
    return outcomes


def _page(planned: Sequence[Outcome], unplanned: Sequence[Outcome]) -> str:
    exact = sum(outcome.exact for outcome in planned)
    parts = [_HEAD, f"{exact} of {len(planned)} families that declare a pipeline plan (or whose text part does).\n\n"]
    parts += [_table(planned), "\n## Without a pipeline plan\n\n", _table(unplanned)]
    failed = [outcome for outcome in (*planned, *unplanned) if not outcome.exact]
    reasons = "".join(f"- `{outcome.family}`: {outcome.reason or 'differs'}\n" for outcome in failed)
    return "".join(parts) + ("\n## Not exact\n\n" + reasons if failed else "")


def _table(outcomes: Sequence[Outcome]) -> str:
    head = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}\n"
    return head + "".join(_row(outcome) for outcome in outcomes)


def _row(outcome: Outcome) -> str:
    split = "exact" if outcome.split_bits else "no"
    way = "together" if outcome.ragged else "one by one"
    paged = f"exact, {way}" if outcome.paged_exact else "no"
    most = max(outcome.whole_difference, outcome.paged_difference)
    cells = (f"`{outcome.family}`", split, paged, "not tried", f"{most:.1e}", ", ".join(outcome.mechanisms))
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
