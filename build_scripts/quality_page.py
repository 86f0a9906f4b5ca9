"""docs/quantisation.md: the text of quantisation.md beside this file, with the figures that quality.py has measured.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from transport.types import WeightFormat

TEMPLATE: Final = Path(__file__).with_name("quantisation.md")


@dataclass(frozen=True, slots=True)
class Quality:
    """A format's figures, all with weights and activations otherwise in bfloat16.

    `answers`: perplexity per answer token of held-out dialogues; `everything`: of their questions too. `cosine`: mean
    over positions, between logits of random weights in this format and in float32. `layers_bytes`: of the latter's
    layers.
    """

    quantize: WeightFormat
    answers: float
    everything: float
    cosine: float
    layers_bytes: int


@dataclass(frozen=True, slots=True)
class KernelError:
    """A kernel's relative error against its own dequantised weight, rows as they are."""

    held: str
    name: str
    error: float


def page(figures: Sequence[Quality], kernels: Iterable[KernelError]) -> str:
    """`figures`: the plain model's first."""
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        quality="".join(_row(_quality_cells(figure, figures[0])) for figure in figures),
        kernels="".join(_row((k.held, f"`{k.name}`", f"{k.error:.1e}")) for k in kernels),
    )


def _quality_cells(figure: Quality, plain: Quality) -> tuple[str, ...]:
    name = "none (bfloat16)" if figure.quantize == "none" else figure.quantize
    return (
        name,
        f"{figure.answers:.4f} ({_change(figure.answers, plain.answers)})",
        f"{figure.everything:.3f} ({_change(figure.everything, plain.everything)})",
        f"{figure.cosine:.4f}",
        f"{figure.layers_bytes / 1e6:.1f} MB ({figure.layers_bytes / plain.layers_bytes:.2f} x)",
    )


def _change(value: float, plain: float) -> str:
    return f"{100 * (value / plain - 1):+.2f} %"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
