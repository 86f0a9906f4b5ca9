from __future__ import annotations

import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from vramancer_cli.engine import architecture, families
from vramancer_cli.engine.families import (
    FamilyError,
    declared_families,
    import_modelling,
    supported_families,
    why_whole,
)

COMPOSITE = ("dots3_note", "qwen3_5", "qwen3_5_moe")
"""Declare no plan themselves, but are built from a text config that does."""


def test_every_family_that_declares_a_plan_is_there() -> None:
    found = declared_families()
    assert len(found) == len(set(found)) == 85 + len(COMPOSITE), "the pinned transformers has these"
    assert list(found) == sorted(found)
    assert set(found) >= {"llama", "mistral", "mixtral", "qwen3", "gemma2", "gpt_oss", "phi3", "gpt_neox", *COMPOSITE}
    assert set(found).isdisjoint({"gpt2", "bert", "vit", "gemma3"}), "no plan, or no model of the text part alone"


def test_a_family_that_is_refused_at_load_is_not_called_supported() -> None:
    assert set(declared_families()) - set(supported_families()) == {"hrm_text"}
    assert len(families.WHOLE_ONLY) <= 8


@pytest.mark.parametrize(("mixes", "refused"), [(True, True), (False, False)])
def test_a_variant_that_mixes_tokens_is_refused_with_the_reason(mixes: bool, refused: bool) -> None:
    assert bool(why_whole(CONFIG_MAPPING["doge"](is_moe=mixes))) == refused
    assert why_whole(CONFIG_MAPPING["llama"]()) == ""


@pytest.mark.parametrize("family", COMPOSITE)
def test_a_composite_family_that_counts_is_cut_by_the_engine(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family]())
    assert architecture.container_name(model) == "layers"


def test_layers_are_found_without_a_plan_too() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["opt"]())
    assert architecture.container_name(model) == "decoder.layers"


@pytest.mark.parametrize(
    "family", ["llama", "deepseek_v4", "kimi_linear", "phi4_multimodal", "inkling_text", *COMPOSITE]
)
def test_modelling_code_is_imported(family: str) -> None:
    model = import_modelling(family)
    assert issubclass(model, PreTrainedModel)
    assert model.__module__ in sys.modules
    assert ".modeling_" in model.__module__


def test_an_unknown_family_is_a_named_error() -> None:
    with pytest.raises(FamilyError, match="'no-such-family'"):
        import_modelling("no-such-family")


def test_a_file_that_a_build_left_out_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.helium.modeling_helium", None)  # as if it were not there
    with pytest.raises(
        FamilyError, match=r"'helium' cannot be imported: ModuleNotFoundError: .*modeling_helium"
    ) as raised:
        import_modelling("helium")
    assert "\n" not in str(raised.value)
    assert raised.value.hint


def test_a_stand_in_for_a_missing_library_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "MODEL_FOR_CAUSAL_LM_MAPPING", {CONFIG_MAPPING["llama"]: object})
    with pytest.raises(FamilyError, match="needs a library"):
        import_modelling("llama")
