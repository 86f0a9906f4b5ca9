from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from tests.helpers.family_matrix import make_family
from vramancer_cli.engine import architecture
from vramancer_cli.engine.calls import watch_calls
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.seam import Seams
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.errors import ModelError


def seams(folder: Path) -> Seams:
    return trace_layers(open_checkpoint(folder)).seams


def test_common_families_pass_on_hidden_states_and_nothing_else(llama: Path):
    found = seams(llama)
    assert len(found.calls) == 8
    assert [[crossing.width for crossing in found.at(cut)] for cut in range(9)] == [[64]] * 9
    assert set(found.stand_ins) == {"embed_tokens", "norm"}


def test_inputs_of_each_layer_and_shared_keys_cross_as_long_as_they_are_needed(tmp_path: Path):
    make_family(tmp_path, "gemma4_text", 0)
    found = seams(tmp_path)
    assert found.brought(3, 3)[1] == ((0, 1), "3.1"), "the layer's own input of the embeddings"
    assert [crossing.name for crossing in found.at(6)] == [
        "6.0", "6.1", "3.shared_kv_states.sliding_attention.0", "3.shared_kv_states.sliding_attention.1",
        "4.shared_kv_states.full_attention.0", "4.shared_kv_states.full_attention.1", "7.1",
    ]  # fmt: skip
    assert len(found.at(0)) == 8 + 1, "hidden states and every layer's input"


def test_streams_and_token_ids_cross_too(tmp_path: Path):
    make_family(tmp_path, "deepseek_v4", 0)
    found = seams(tmp_path)
    assert [(crossing.width, crossing.dtype) for crossing in found.at(3)] == [
        (4 * 64, torch.bfloat16), (1, torch.int64)
    ]  # fmt: skip


def watch(llama: Path) -> Seams:
    model = architecture.build(open_checkpoint(llama), torch.bfloat16, ragged=False)
    base: Any = architecture.base_model(model)
    return watch_calls(model, lambda _count, ids, positions: base(input_ids=ids, position_ids=positions))


def test_work_on_the_embedding_between_layers_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch):
    def forward(self: LlamaModel, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = embedded = self.embed_tokens(input_ids)
        rotation = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotation) + embedded
        return hidden

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="different depths"):
        watch(llama)


def test_layers_that_run_twice_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch):
    def forward(self: LlamaModel, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(input_ids)
        rotation = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in (*self.layers, *self.layers):
            hidden = layer(hidden, position_embeddings=rotation)
        return hidden

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="each once"):
        watch(llama)
