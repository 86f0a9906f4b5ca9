from __future__ import annotations

from dataclasses import replace

import torch

from build_scripts.guide_text import compose
from build_scripts.quality import PAGE, held_out, kernel_errors, misses, perplexity, quantised
from build_scripts.quality_page import KernelError, Quality, page
from build_scripts.train_guide import BATCH, SEED, STEPS
from tests.helpers.checkpoints import make_model
from vramancer_cli.engine.quant_linear import QuantisedLinear

PLAIN = Quality("none", answers=1.05, everything=14.0, cosine=1.0, layers_bytes=1000)
FIGURES = [PLAIN, replace(PLAIN, quantize="int8", cosine=0.999), replace(PLAIN, quantize="int4", cosine=0.94)]


def test_no_question_that_was_trained_on_is_held_out():
    asked = {m.content for dialogue in compose(STEPS * BATCH, SEED) for m in dialogue if m.role == "user"}
    fresh = held_out(50)
    assert len(fresh) == 50
    assert not asked & {m.content for dialogue in fresh for m in dialogue if m.role == "user"}


def test_perplexity_is_that_of_the_definition():
    model = make_model(num_hidden_layers=1)
    ids = [5, 9, 200, 31]
    row = (ids, [-100, -100, 200, 31])
    with torch.inference_mode():
        shares = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    answers = -(shares[1, 200] + shares[2, 31]) / 2
    everything = -(shares[0, 9] + shares[1, 200] + shares[2, 31]) / 3
    assert abs(perplexity(model, [row], answers_only=True) / float(answers.exp()) - 1) < 1e-5
    assert abs(perplexity(model, [row], answers_only=False) / float(everything.exp()) - 1) < 1e-5


def test_a_quantised_copy_leaves_the_model_alone():
    model = make_model(num_hidden_layers=1)
    before = model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    copied = quantised(model, "int4")
    assert any(isinstance(module, QuantisedLinear) for module in copied.modules())
    assert torch.equal(model.state_dict()["model.layers.0.mlp.up_proj.weight"], before)


def test_a_figure_under_its_goal_is_named():
    assert misses(FIGURES) == []
    bad = replace(FIGURES[2], answers=1.05 * 1.031, cosine=0.92)
    assert [sentence.split(":")[0] for sentence in misses([PLAIN, FIGURES[1], bad])] == ["int4", "int4"]


def test_the_page_holds_the_figures():
    text = page(FIGURES, [KernelError("int8", "OnednnInt8", 0.008)])
    assert "| none (bfloat16) | 1.0500 (+0.00 %) | 14.000 (+0.00 %) | 1.0000 | 0.0 MB (1.00 x) |" in text
    assert "| int8 | `OnednnInt8` | 8.0e-03 |" in text
    assert "$" not in text


def test_the_page_in_docs_is_what_the_template_says():
    """All but the figures, which depend on the machine."""
    written = PAGE.read_text("utf-8")
    made = page(FIGURES, kernel_errors())

    def prose(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("| ")]

    assert prose(written) == prose(made)
    assert all(error.error < 1e-2 for error in kernel_errors())
