from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from tests.helpers.family_matrix import make_family
from vramancer_cli.engine.sequence_cache import SequenceCache, index_layer


class Pages:
    """A place that keeps everything in lists."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def start(self) -> int:
        return max((key.shape[1] for key, _ in self.kept.values()), default=0)

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.kept:
            key, value = (torch.cat(pair, 1) for pair in zip(self.kept[layer], (key, value), strict=True))
        self.kept[layer] = key, value
        return key, value


class Fixed:
    """What a row is run with: `start` stays where the step began."""

    def __init__(self, pages: Pages) -> None:
        self.start = pages.start
        self.keep = pages.keep


def logits(model: PreTrainedModel, ids: torch.Tensor, cache: Any, start: int = 0) -> torch.Tensor:
    positions = torch.arange(start, start + ids.shape[1])[None]
    with torch.inference_mode():
        return model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True).logits[0]


@pytest.mark.parametrize("family", ["gemma2", "deepseek_v32", "qwen3_next", "deepseek_v4", "inkling_text"])
def test_it_is_to_the_layers_what_their_own_cache_is(tmp_path: Path, family: str):
    """In three pieces: windows, indexers, recurrent states, compressors and convolutions."""
    model = make_family(tmp_path, family, 0)
    ids = torch.arange(1, 41)[None]
    pages, theirs = Pages(), DynamicCache(config=model.config)
    ours = SequenceCache(model, DynamicCache, Fixed(pages))
    for start, end in ((0, 21), (21, 39), (39, 40)):
        got = logits(model, ids[:, start:end], ours.at(Fixed(pages)), start)
        torch.testing.assert_close(got, logits(model, ids[:, start:end], theirs, start), atol=1e-6, rtol=0)


def test_only_what_is_no_key_and_no_value_is_state(tmp_path: Path):
    model = make_family(tmp_path, "deepseek_v32", 0)
    pages = Pages()
    ours = SequenceCache(model, DynamicCache, Fixed(pages))
    logits(model, torch.arange(1, 9)[None], ours.cache)
    assert list(ours.state()) == []
    assert {key for key in pages.kept if key < 0} == {index_layer(layer) for layer in range(4)}
