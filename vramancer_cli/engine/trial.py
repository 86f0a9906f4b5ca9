"""Small pieces of work whose right results are known: whether torch computes on this machine, and the engine answers.

For `vramancer doctor`. Must never be needed by a node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
import transformers

from transport.messages import ModelRef, Plan, StagePlan, Step, StepRow
from transport.types import DeviceFacts, LayerRange
from vramancer_cli.engine.devices import torch_device
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.sampling import Draw, Sampling

_SIDE: Final = 96
"""With entries of -1, 0 and 1, every partial sum is a whole number below 256, which even bfloat16 holds exactly: no
kernel has anything to round."""
_BLOCK_TOKENS: Final = 16
_SLOTS: Final = 1
_DTYPE: Final = "float32"


class WrongResultError(VramancerError):
    """A device multiplied matrices wrongly."""

    hint = "Update its driver, or leave it out with --device."


def versions() -> dict[str, str]:
    """What is really imported, without the build tag ("+cpu", "+cu128")."""
    return {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}


def multiply(device: DeviceFacts, dtype: str = _DTYPE) -> None:
    """One product of two matrices on `device`. Raises WrongResultError, and what torch raises where it cannot."""
    entries = torch.Generator().manual_seed(7)
    left, right = (torch.randint(-1, 2, (_SIDE, _SIDE), generator=entries) for _ in range(2))
    expected = left @ right  # of whole numbers, so exact
    where, kind = torch_device(device), DTYPES[dtype]
    product = left.to(where, kind) @ right.to(where, kind)
    if not torch.equal(product.cpu(), expected.to(kind)):
        raise WrongResultError(f"{device} multiplied {dtype} matrices wrongly.")


def greedy_tokens(
    folder: Path, prompt: Sequence[int], count: int, device: str = "auto", threads: int | None = 1
) -> list[int]:
    """`count` token ids that follow `prompt`, computed in float32 by one stage and the ends on `device`.

    Leaves torch with `threads` CPU threads per operation; for so little work one is enough. Raises ModelError,
    DeviceError, OverLimitError, NonFiniteLogitsError.
    """
    engine = TorchEngine(device, threads=threads)
    facts = engine.model_facts(folder, ModelRef(folder.name, "folder", str(folder), engine.digest(folder)))
    plan = _one_stage(facts, engine.device_facts(), len(prompt) + count)
    tokens = list(prompt)
    with (
        contextlib.closing(engine.load_stage(folder, plan, 0, _unwatched)) as stage,
        contextlib.closing(engine.load_ends(folder, plan, _unwatched)) as ends,
    ):
        for number in range(count):
            done = len(tokens) - 1 if number else 0
            step = _step(plan, number, done, len(tokens) - done)
            output = stage.execute(step, ends.embed(step, tokens[done:]))
            tokens += ends.sample(output, [Draw(Sampling(temperature=0.0), number)])
    return tokens[len(prompt) :]


def _one_stage(facts: ModelFacts, device: DeviceFacts, tokens: int) -> Plan:
    """All layers on `device`, with room for one sequence of `tokens`."""
    layers = LayerRange(0, facts.layer_count)
    block_count = -(-tokens // _BLOCK_TOKENS)
    stage = StagePlan(
        node="",
        device=device,
        layers=layers,
        weights_bytes=facts.weights_bytes(layers, _DTYPE),
        kv_bytes=facts.kv_bytes(layers, _DTYPE, block_count * _BLOCK_TOKENS) + facts.state_bytes(layers, _SLOTS),
        workspace_bytes=facts.workspace_bytes(tokens),
    )
    return Plan(
        epoch=1,
        model=facts.ref,
        dtype=_DTYPE,
        context_tokens=tokens,
        block_tokens=_BLOCK_TOKENS,
        block_count=block_count,
        max_step_tokens=tokens,
        ends="",
        ends_bytes=facts.ends_bytes(_DTYPE),
        stages=(stage,),
        state_slots=_SLOTS if facts.has_state else 0,
    )


def _step(plan: Plan, number: int, start: int, count: int) -> Step:
    """The one sequence's next tokens; the first step brings all of its blocks, and its state's slot if it has one."""
    sizes = (plan.block_count, plan.state_slots) if plan.state_slots else (plan.block_count,)
    given = tuple(tuple(range(size)) if number == 0 else () for size in sizes)
    first = tuple(0 if number == 0 else size for size in sizes)
    return Step(plan.epoch, number, (StepRow(0, start, count, first, given, 1),))


def _unwatched(loaded_bytes: int, total_bytes: int) -> None:
    """For a load that nobody watches."""
