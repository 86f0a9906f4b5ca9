"""One family against transformers: a tiny checkpoint of it, run whole there, and split at every cut here.

Three things are compared, in float32 on the CPU. Prefill in one piece, split at each cut, against our engine unsplit,
bit for bit; how far both are from transformers is measured too. And chunks, decoding and several sequences in one
batch, split at every layer, against transformers within 1e-4, with the same greedy tokens. And the same with weights in
int8 and in int4, against the model in the same format unsplit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.helpers.family_configs import VOCABULARY, tiny_config
from tests.helpers.family_mechanisms import mechanisms
from tests.helpers.greedy import greedy
from tests.helpers.stepping import Driver, Request, even_ranges, make_plan
from transport.messages import Step, StepRow
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.engine.weights import read_as

TOLERANCE: Final = 1e-4
MARGIN: Final = 1e-3
PROMPTS: Final = (33, 41, 29)
"""Lengths in tokens: more than three of the tiny configs' windows."""
NEW_TOKENS: Final = 6
CHUNK_TOKENS: Final = 24
SEEDS: Final = 8
FORMATS: Final[tuple[WeightFormat, ...]] = ("int8", "int4")
_CHOOSES_BY_TOKEN: Final = ("doge",)
"""Families that choose between keys by what depends on the token alone: of two equal ones rounding would choose, in
transformers too, which then differs from itself."""
_STIRRED_MORE: Final = {"self_attn.A": 1.0}
"""Names that end so: how much noise they get, where little would leave a mechanism undecided. doge chooses keys by
exp(A * ...): with A near 0 all are equally good, and the last bit of a product chooses."""


@dataclass
class Outcome:
    """What was found of one family. Differences are the largest absolute ones of the logits."""

    family: str
    layers: int = 0
    ragged: bool = False
    split_bits: bool = False
    whole_difference: float = float("nan")
    paged_difference: float = float("nan")
    margin: float = float("nan")
    same_tokens: bool = False
    reason: str = ""
    mechanisms: tuple[str, ...] = ()
    quantised: dict[str, float] = field(default_factory=dict[str, float])
    """By format: the largest difference of a logit to the same quantised model unsplit; infinite for other tokens.
    Empty where no weight is of a kind that is quantised."""

    @property
    def paged_exact(self) -> bool:
        return self.paged_difference <= TOLERANCE and self.same_tokens and self.margin > MARGIN

    @property
    def exact(self) -> bool:
        return self.split_bits and self.whole_difference <= TOLERANCE and self.paged_exact

    @property
    def quantised_runs(self) -> bool:
        """Split as whole, in every format (grade "stable")."""
        return bool(self.quantised) and max(self.quantised.values()) <= TOLERANCE


def examine(family: str) -> Outcome:
    """Everything about one family; what goes wrong becomes its reason."""
    outcome = Outcome(family)
    folder = Path(tempfile.mkdtemp(prefix="family-"))
    try:
        _examine(outcome, folder)
    except Exception as error:  # the door of the matrix: one family's failure is a row of the table
        outcome.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _examine(outcome: Outcome, folder: Path) -> None:
    reference, texts, outcome.margin = _well_separated(outcome.family, folder)
    trace = trace_layers(open_checkpoint(folder))
    outcome.layers, outcome.ragged = len(trace.seams.calls), trace.ragged
    outcome.mechanisms = mechanisms(reference.config.get_text_config(), trace, min(PROMPTS))
    prompts = _prompts(outcome.family)
    outcome.split_bits, outcome.whole_difference = _split(folder, outcome.layers, reference, prompts[1])
    outcome.paged_difference, outcome.same_tokens = _paged(folder, outcome.layers, reference, prompts, texts)
    engine = TorchEngine("cpu", limit_bytes=1 << 30, threads=1)
    for quantize in FORMATS:
        plans = (make_plan(engine, folder, 1, quantize=chosen) for chosen in ("none", quantize))
        plain_bytes, held_bytes = (plan.stages[0].weights_bytes for plan in plans)
        if held_bytes < plain_bytes:
            outcome.quantised[quantize] = _quantised(engine, folder, outcome.layers, prompts, quantize)
    if not outcome.exact and (change := _change_by_cache(reference)) > TOLERANCE:
        outcome.reason = f"transformers differs from itself by {change:.1e} when it decodes with its own cache"


def make_family(folder: Path, family: str, seed: int) -> PreTrainedModel:
    """Write a tiny checkpoint of `family`, and give it back as transformers loads it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    stir(model)
    model.save_pretrained(folder)
    _keep_names(folder, model)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _keep_names(folder: Path, model: PreTrainedModel) -> None:
    """Where transformers writes a name that it does not read back as the same weight, write the name without prefix."""
    path = folder / "model.safetensors"
    checkpoint, prefix = open_checkpoint(folder), f"{model.base_model_prefix}."
    lost = {name for name in checkpoint.tensors if name in model.state_dict()} - read_as(model, checkpoint).keys()
    if lost:
        stored = {name.removeprefix(prefix) if name in lost else name: part for name, part in load_file(path).items()}
        save_file(stored, path, {"format": "pt"})


def stir(model: PreTrainedModel) -> None:
    """Random noise on every weight, so that none keeps an initial value that switches a mechanism off.

    Of the buffers only on biases: others are tables that have to fit each other.
    """
    biases = [(name, tensor) for name, tensor in model.named_buffers() if name.endswith("bias")]
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *biases):
            more = [noise for ending, noise in _STIRRED_MORE.items() if name.endswith(ending)]
            tensor.add_(torch.randn(tensor.shape) * (more or [0.05])[0])


def _change_by_cache(reference: PreTrainedModel) -> float:
    """How far transformers is from itself when it reads tokens as the engine does: in chunks, then one by one."""
    prompts = _prompts(reference.config.model_type)
    return max(_change_of(reference, [*prompt, 5, 6, 7]) for prompt in prompts)


def _change_of(reference: PreTrainedModel, tokens: list[int]) -> float:
    pieces = torch.tensor([tokens]).split([CHUNK_TOKENS, len(tokens) - CHUNK_TOKENS - 3, 1, 1, 1], dim=1)
    parts: list[torch.Tensor] = []
    cache = None
    with torch.inference_mode():
        whole = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        for piece in pieces:
            output = reference(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits[0])
    return float((whole - torch.cat(parts)).abs().max())


def _prompts(family: str) -> list[list[int]]:
    square = 0 if family in _CHOOSES_BY_TOKEN else 11
    step = 53 if family in _CHOOSES_BY_TOKEN else 5  # no token twice: 53 has no factor in common with the vocabulary
    return [
        [(37 * i + square * k * k + step * k) % (VOCABULARY - 2) + 1 for k in range(n)] for i, n in enumerate(PROMPTS)
    ]


def _well_separated(family: str, folder: Path) -> tuple[PreTrainedModel, list[list[int]], float]:
    """The first seed whose greedy answers are not decided by rounding, with the answers and their least margin."""
    best = None
    for seed in range(SEEDS):
        model = make_family(folder, family, seed)
        answers = [greedy(model, prompt, NEW_TOKENS) for prompt in _prompts(family)]
        margin = min(margin for _, margin in answers)
        if margin > MARGIN:
            return model, [text for text, _ in answers], margin
        best = margin if best is None else max(best, margin)
    raise ValueError(f"no seed of {SEEDS} gives a margin over {MARGIN} (best {best})")


def _split(folder: Path, layers: int, reference: PreTrainedModel, prompt: list[int]) -> tuple[bool, float]:
    """Prefill of one prompt in one piece: whether every cut gives no cut's bits; the difference to transformers."""
    with torch.inference_mode():
        expected = reference(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    engine = TorchEngine("cpu", limit_bytes=1 << 30, threads=1)
    whole = _prefill(engine, folder, [LayerRange(0, layers)], prompt)
    pairs = [[LayerRange(0, cut), LayerRange(cut, layers)] for cut in range(1, layers)]
    same = all(torch.equal(_prefill(engine, folder, ranges, prompt), whole) for ranges in pairs)
    return same, float((whole - expected).abs().max())


def _prefill(engine: TorchEngine, folder: Path, ranges: Sequence[LayerRange], prompt: list[int]) -> torch.Tensor:
    with _driver(engine, folder, ranges, max_step_tokens=64) as driver:
        request = Request(prompt, 1)
        row = driver._row(0, request, len(prompt))
        step = Step(1, 0, (StepRow(row.sequence, row.start, row.count, row.first_block, row.blocks, len(prompt)),))
        return driver.ends.logits(driver.send(step, prompt).hidden)


def _paged(
    folder: Path, layers: int, reference: PreTrainedModel, prompts: list[list[int]], texts: list[list[int]]
) -> tuple[float, bool]:
    engine = TorchEngine("cpu", limit_bytes=1 << 30, threads=1)
    requests = [Request(prompt, NEW_TOKENS, joins_at=i) for i, prompt in enumerate(prompts)]
    with _driver(engine, folder, even_ranges(layers, layers), max_step_tokens=CHUNK_TOKENS) as driver:
        driver.run(requests)
        difference = max(_difference(reference, request, driver) for request in requests)
    return difference, [request.generated for request in requests] == texts


def _quantised(
    engine: TorchEngine, folder: Path, layers: int, prompts: list[list[int]], quantize: WeightFormat
) -> float:
    """One stage for each layer beside one for all."""
    runs: list[list[Request]] = []
    for stages in (1, layers):
        requests = [Request(prompt, NEW_TOKENS, joins_at=i) for i, prompt in enumerate(prompts)]
        ranges = even_ranges(layers, stages)
        with _driver(engine, folder, ranges, max_step_tokens=CHUNK_TOKENS, quantize=quantize) as driver:
            driver.run(requests)
        runs.append(requests)
    if [request.generated for request in runs[0]] != [request.generated for request in runs[1]]:
        return float("inf")
    pairs = [zip(whole.logits, split.logits, strict=True) for whole, split in zip(*runs, strict=True)]
    return max(float((one - other).abs().max()) for pair in pairs for one, other in pair)


def _difference(reference: PreTrainedModel, request: Request, driver: Driver) -> float:
    """Of the logits at every token that was sampled from."""
    tokens = request.prompt + request.generated[:-1]
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    expected = logits[len(request.prompt) - 1 :]
    return float((torch.stack(request.logits) - expected).abs().max())


@contextmanager
def _driver(
    engine: TorchEngine,
    folder: Path,
    ranges: Sequence[LayerRange],
    *,
    max_step_tokens: int,
    quantize: WeightFormat = "none",
) -> Iterator[Driver]:
    plan = make_plan(
        engine,
        folder,
        ranges,
        quantize=quantize,
        max_step_tokens=max_step_tokens,
        block_tokens=8,
        block_count=64,
    )
    driver = Driver(engine, folder, plan)
    try:
        yield driver
    finally:
        driver.close()
