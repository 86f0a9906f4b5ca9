"""What placement and scheduling need to know of a model, as one frozen value. Filled by engine/weights."""

from __future__ import annotations

from dataclasses import dataclass

from transport.messages import ModelRef
from transport.types import DTYPE_BYTES, LayerRange


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a checkpoint, in elements, so that bytes follow from the dtype chosen for the plan.

    `layer_parameters[i]`: weights of decoder layer i. `ends_parameters`: embedding, final norm and output head
    (tied weights once). `kv_elements_per_token[i]`: K plus V elements that layer i keeps per token.
    `state_elements_per_sequence[i]`: recurrent state that layer i keeps per sequence, however long; () where no layer
    keeps any.
    `workspace_elements_per_token`: the most that is alive at once while one token row passes a layer or the head.
    `context_tokens`: the longest context that the checkpoint declares.
    """

    ref: ModelRef
    family: str
    hidden_size: int
    vocab_size: int
    context_tokens: int
    checkpoint_dtype: str
    layer_parameters: tuple[int, ...]
    ends_parameters: int
    kv_elements_per_token: tuple[int, ...]
    workspace_elements_per_token: int
    state_elements_per_sequence: tuple[int, ...] = ()

    @property
    def layer_count(self) -> int:
        return len(self.layer_parameters)

    def weights_bytes(self, layers: LayerRange, dtype: str) -> int:
        return sum(self.layer_parameters[layers.start : layers.end]) * DTYPE_BYTES[dtype]

    def ends_bytes(self, dtype: str) -> int:
        return self.ends_parameters * DTYPE_BYTES[dtype]

    def kv_bytes(self, layers: LayerRange, dtype: str, tokens: int) -> int:
        return sum(self.kv_elements_per_token[layers.start : layers.end]) * tokens * DTYPE_BYTES[dtype]

    @property
    def has_state(self) -> bool:
        return any(self.state_elements_per_sequence)

    def state_bytes(self, layers: LayerRange, slots: int) -> int:
        """Counted in float32 whatever the dtype: a state sums up all tokens, and rounding it would sum up too."""
        return sum(self.state_elements_per_sequence[layers.start : layers.end]) * slots * DTYPE_BYTES["float32"]

    def workspace_bytes(self, max_step_tokens: int) -> int:
        """Counted in float32 whatever the dtype: norms, softmax and logits are computed in it."""
        return self.workspace_elements_per_token * max_step_tokens * DTYPE_BYTES["float32"]
