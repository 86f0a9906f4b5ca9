"""Both ends of the model: token ids to hidden states, and hidden states to the next token ids.

Must never see text or a grammar, and never keep state from one step to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transport.messages import Plan, Step
from transport.types import WeightFormat
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.boundary import Boundary, gathered, nothing
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.engine.memory import MemoryBudget, Reservation
from vramancer_cli.engine.reading import Reader
from vramancer_cli.engine.stage import checked, release
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.trace import positions_for, trace_layers
from vramancer_cli.engine.weights import HEAD_COPIES, Progress
from vramancer_cli.errors import ModelError, VramancerError
from vramancer_cli.models.readout import Readout, RowOutput
from vramancer_cli.models.sampling import Draw


class NonFiniteLogitsError(VramancerError):
    """The model computed values that are not finite, so no next token can be chosen."""

    hint = "Load the model with --dtype float32 or bfloat16."


class EndsModel:
    """Embedding, final norm and output head of a checkpoint: on meta after construction, usable after `load`."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, quantize: WeightFormat = "none") -> None:
        self._checkpoint = checkpoint
        self._quantize: WeightFormat = quantize
        trace = trace_layers(checkpoint)
        self._model = architecture.build(checkpoint, dtype, ragged=trace.ragged)
        self._split = architecture.keep_ends(self._model, trace.seams)
        self._entering, self._result = trace.seams.at(0), trace.seams.result
        self.vocab_size: int = self._model.config.get_text_config().vocab_size
        self.weights_bytes = weights.weights_bytes(self._model, quantize)

    def load(self, device: torch.device, progress: Progress) -> None:
        """Read the owned tensors to `device`. Raises ModelError."""
        weights.load_into(self._model, self._checkpoint, device, progress, self._quantize)
        self._try(device)

    def unload(self) -> None:
        """Free the weights at once, whoever still refers to the model."""
        architecture.free(self._model)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> Boundary:
        """[T] int64 each in; what crosses before the first layer out."""
        if not token_ids.numel():
            return nothing(self._entering, self._model.dtype, token_ids.device)
        arguments = positions_for(self._model, positions[None]) | {"use_cache": False}
        return gathered(self._entering, self._split.prologue(input_ids=token_ids[None], **arguments))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, width] as the last layer gave them in, [R, vocabulary] float32 out, after all that the family does."""
        output = self._split.epilogue(self._result.from_rows(hidden), **_placeholder(hidden))
        return output.logits[0].float()

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, width] as the last layer gave them in; [R, hidden] out, the model's final hidden states (normalised)."""
        return self._split.final_hidden(self._result.from_rows(hidden), **_placeholder(hidden))[0]

    def _try(self, device: torch.device) -> None:
        """Two tokens through both ends, to find out now what would go wrong in every answer.

        Raises NonFiniteLogitsError for weights that give no answer at all.
        """
        ids = torch.tensor([0, self.vocab_size - 1], device=device)
        with torch.inference_mode():
            hidden = finite(self.embed(ids, torch.arange(2, device=device)).hidden)
            finite(self.logits(hidden[:, : self._result.width]))


class TorchEnds:
    """Implements the runtime's `Ends`. Every method on the device's thread."""

    def __init__(self, model: EndsModel, device: torch.device, rows_at_once: int, held: Reservation) -> None:
        self.weights_bytes = model.weights_bytes
        self._model: EndsModel | None = model
        self._device = device
        self._rows_at_once = rows_at_once
        self._held = held

    def embed(self, step: Step, token_ids: Sequence[int]) -> Boundary:
        """The step's tokens, in row order; what crosses before the first layer.

        Raises ModelError for an id outside the vocabulary, before a device trips over it.
        """
        model = self._open()
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < model.vocab_size):
            raise ModelError(f"A token id is outside the model's vocabulary of {model.vocab_size}.")
        with torch.inference_mode():
            positions = [position for row in step.rows for position in range(row.start, row.start + row.count)]
            both = torch.tensor([token_ids, positions], dtype=torch.int64).to(self._device)
            return model.embed(both[0], both[1])

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, width] as the last stage gave them in, [R, vocabulary] float32 out. Raises NonFiniteLogitsError."""
        with torch.inference_mode():
            return finite(self._open().logits(rows.to(self._device)))

    def read(self, boundary: Boundary, readouts: Sequence[Readout]) -> list[RowOutput]:
        """What came out of the last stage, row after row (sum of outputs), and their readouts in; an answer each.

        Raises NonFiniteLogitsError, and LocalProtocolError where rows and readouts do not go together.
        """
        with torch.inference_mode():
            rows = boundary.hidden.to(self._device)
            return Reader(self.logits, self._normed, self._rows_at_once).read(rows, readouts)

    def close(self) -> None:
        """Free the weights, and give their bytes back. May be called again."""
        model, self._model = self._model, None
        if model is not None:
            model.unload()
            release(self._device, self._held)

    def sample(self, boundary: Boundary, draws: Sequence[Draw]) -> list[int]:
        """As `read`, for R rows that are each sampled and nothing else; R token ids out."""
        read = self.read(boundary, [Readout(row, 1, (draw,)) for row, draw in enumerate(draws)])
        return [output.tokens[0] for output in read]

    def _normed(self, rows: torch.Tensor) -> torch.Tensor:
        return finite(self._open().normed(rows))

    def _open(self) -> EndsModel:
        if self._model is None:
            raise VramancerError("The model's ends have been unloaded.")
        return self._model


def load_ends(folder: Path, plan: Plan, budget: MemoryBudget, device: torch.device, progress: Progress) -> TorchEnds:
    """Reserve, then load. Raises OverLimitError before allocating anything over the limit, ModelError.

    What `plan.ends_bytes` holds beyond the weights is workspace: rows of logits are taken in turns that fit into it.
    """
    model = EndsModel(checked(folder, plan), DTYPES[plan.dtype], plan.quantize)
    row_bytes = HEAD_COPIES * model.vocab_size * torch.float32.itemsize
    workspace_bytes = max(row_bytes, plan.ends_bytes - model.weights_bytes)
    held = budget.reserve(f"Embedding and output head of {plan.model.name}", model.weights_bytes + workspace_bytes)
    try:
        model.load(device, progress)
    except BaseException:
        model.unload()
        release(device, held)
        raise
    return TorchEnds(model, device, workspace_bytes // row_bytes, held)


def _placeholder(hidden: torch.Tensor) -> dict[str, Any]:
    """Token ids for the forward that leads to the end of the layers; what it makes of them is thrown away."""
    return {"input_ids": torch.zeros(1, hidden.shape[0], dtype=torch.int64, device=hidden.device), "use_cache": False}


def finite(values: torch.Tensor) -> torch.Tensor:
    """`values`, unchanged. Raises NonFiniteLogitsError."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteLogitsError
    return values
