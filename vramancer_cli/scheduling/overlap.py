"""How work is cut so that no stage of a pipeline waits for another: groups of decodes, and chunks of prompts.

The bubble of a pipeline is filled by several steps on their way at once (GPipe, Huang et al. 2019); the chunks of one
prompt need not wait for each other's results, only follow each other through each stage. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Final

from transport.messages import Plan

LEAST_CHUNK: Final = 32
"""A prompt is not cut into smaller chunks than this for the sake of overlap."""
CPU_OVERHEAD_TOKENS: Final = 16
ACCELERATOR_OVERHEAD_TOKENS: Final = 256
"""What a step costs beside its tokens (reading all weights, above all), in tokens, by kind of device. A constant, so
that the chunks of a prompt, and with them the bits, do not depend on how fast anything was."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """`groups`: so many steps with decodes fly at once, one for each stage. `most_steps`: so many in all; what goes
    beyond `groups` are chunks of prompts, which keep the stages at work while others are on the wire.
    `overhead_tokens`: what a step costs beside its tokens; 0: a prompt is cut as large as steps take."""

    groups: int = 1
    most_steps: int = 1
    overhead_tokens: int = 0

    @classmethod
    def of_plan(cls, plan: Plan) -> Overlap:
        stages = len(plan.stages)
        on_cpu = all(stage.device.kind == "cpu" for stage in plan.stages)
        return cls(stages, 2 * stages - 1, CPU_OVERHEAD_TOKENS if on_cpu else ACCELERATOR_OVERHEAD_TOKENS)

    def decodes(self, all_decodes: int, ready: int, flying: int) -> int:
        """How many of the `ready` ones the next step takes while `flying` steps with decodes are on their way.

        Of all decodes, in flight too, it takes no more than a group's part: else the crowd that once came in one step
        would stay together for ever, and all stages but one would wait for it.
        """
        places = self.groups - flying
        return min(-(-all_decodes // self.groups), -(-ready // places)) if places > 0 else 0

    def chunk(self, tokens: int) -> int:
        """Of so many tokens of prompts that wait, how many the next step takes.

        n chunks of c tokens take n + S - 1 turns of overhead + c each; c = sqrt(tokens * overhead / (S - 1)) is best.
        """
        if self.groups == 1 or not self.overhead_tokens:
            return tokens
        best = max(LEAST_CHUNK, isqrt(tokens * self.overhead_tokens // (self.groups - 1)))
        return -(-tokens // max(1, tokens // best))
