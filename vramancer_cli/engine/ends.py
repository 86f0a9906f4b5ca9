"""Both ends of the model: token ids to hidden states, and hidden states to the next token ids.

Must never see text or a grammar, and never keep state from one step to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from transport.messages import Plan
from transport.types import LayerRange
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.engine.memory import MemoryBudget, Reservation
from vramancer_cli.engine.reading import Reader
from vramancer_cli.engine.stage import checked, release
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.weights import HEAD_COPIES, Progress
from vramancer_cli.errors import ModelError, VramancerError
from vramancer_cli.models.readout import Readout, RowOutput
from vramancer_cli.models.sampling import Draw


class NonFiniteLogitsError(VramancerError):
    """The model computed values that are not finite, so no next token can be chosen."""

    hint = "Load the model with --dtype float32 or bfloat16."


class EndsModel:
    """Embedding, final norm and output head of a checkpoint: on meta after construction, usable after `load`."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._model = architecture.build(checkpoint, dtype)
        architecture.keep(self._model, LayerRange(0, 0), ends=True)
        parts = architecture.parts_of(self._model)
        self._before, self._after = parts.before, parts.after
        self.vocab_size: int = self._model.config.get_text_config().vocab_size
        self.weights_bytes = weights.weights_bytes(self._model)

    def load(self, device: torch.device, progress: Progress) -> None:
        """Read the owned tensors to `device`. Raises ModelError."""
        weights.load_into(self._model, self._checkpoint, device, progress)
        self._try(device)

    def unload(self) -> None:
        """Free the weights at once, whoever still refers to the model."""
        architecture.free(self._model)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 in, [T, hidden] out."""
        base = architecture.base_model(self._model)
        value = token_ids[None]
        for name in self._before:
            value = base.get_submodule(name)(value)
        return value[0]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, hidden] in; [R, vocabulary] float32 out, with whatever the family does to its logits."""
        return self._model(inputs_embeds=rows[None], use_cache=False).logits[0].float()

    def normed(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, hidden] of the last layer in; the same after the final norm out: the model's final hidden states."""
        return architecture.base_model(self._model)(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]

    def _try(self, device: torch.device) -> None:
        """Two tokens through both ends, to find out now what would go wrong in every answer.

        Raises ModelError where the base model does more to token ids than the pipeline plan says, and
        NonFiniteLogitsError for weights that give no answer at all.
        """
        ids = torch.tensor([0, self.vocab_size - 1], device=device)
        with torch.inference_mode():
            embedded = finite(self.embed(ids))
            if not torch.equal(self._before_norm(ids), embedded):
                raise ModelError(f"The family '{self._model.config.model_type}' embeds in a way that cannot be split.")
            finite(self.logits(embedded))

    def _before_norm(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the base model hands to its final norm when it is given ids and has no layers."""
        seen: list[torch.Tensor] = []
        norm = architecture.base_model(self._model).get_submodule(self._after[0])
        hook = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
        self._model(input_ids=token_ids[None], use_cache=False)
        hook.remove()
        return seen[0]


class TorchEnds:
    """Implements the runtime's `Ends`. Every method on the device's thread."""

    def __init__(self, model: EndsModel, device: torch.device, rows_at_once: int, held: Reservation) -> None:
        self.weights_bytes = model.weights_bytes
        self._model: EndsModel | None = model
        self._device = device
        self._rows_at_once = rows_at_once
        self._held = held

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[T, hidden]. Raises ModelError for an id outside the vocabulary, before a device trips over it."""
        model = self._open()
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < model.vocab_size):
            raise ModelError(f"A token id is outside the model's vocabulary of {model.vocab_size}.")
        with torch.inference_mode():
            return model.embed(torch.tensor(token_ids, dtype=torch.int64).to(self._device))

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, hidden] in, [R, vocabulary] float32 out. Raises NonFiniteLogitsError."""
        with torch.inference_mode():
            return finite(self._open().logits(rows.to(self._device)))

    def read(self, rows: torch.Tensor, readouts: Sequence[Readout]) -> list[RowOutput]:
        """Outputs of the last stage, row after row [sum of outputs, hidden], and their readouts in; an answer each.

        Raises NonFiniteLogitsError, and LocalProtocolError where rows and readouts do not go together.
        """
        with torch.inference_mode():
            return Reader(self.logits, self._normed, self._rows_at_once).read(rows.to(self._device), readouts)

    def close(self) -> None:
        """Free the weights, and give their bytes back. May be called again."""
        model, self._model = self._model, None
        if model is not None:
            model.unload()
            release(self._device, self._held)

    def sample(self, rows: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        """As `read`, for rows [R, hidden] that are each sampled and nothing else; R token ids out."""
        read = self.read(rows, [Readout(row, 1, draw) for row, draw in enumerate(draws)])
        return [output.token for output in read if output.token is not None]

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
    model = EndsModel(checked(folder, plan), DTYPES[plan.dtype])
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


def finite(values: torch.Tensor) -> torch.Tensor:
    """`values`, unchanged. Raises NonFiniteLogitsError."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteLogitsError
    return values
