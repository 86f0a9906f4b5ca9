from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import hostile_checkpoints as hostile
from vramancer_cli.errors import ModelError
from vramancer_cli.models import folder as model_folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_good_folder_passes(good: Path) -> None:
    hostile.put_pickles(good)
    hostile.put_code(good)
    model_folder.check_folder(good)
    model_folder.check_tokenizer(good)


def test_no_folder_and_no_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        model_folder.check_folder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json"):
        model_folder.check_folder(tmp_path)


def test_who_names_the_folder_of_a_gguf_file_is_told_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError) as caught:
        model_folder.check_folder(tmp_path)
    assert ".gguf file itself" in caught.value.hint


@pytest.mark.parametrize("name", model_folder.CODE_CONFIGS)
def test_code_is_refused_whichever_config_names_it(good: Path, name: str) -> None:
    hostile.brings_code(name)(good)
    with pytest.raises(ModelError, match=f"its own Python code .auto_map in {name}"):
        model_folder.check_folder(good)


@pytest.mark.parametrize("kind", hostile.BIG_FILES)
def test_a_file_that_would_be_read_whole_may_not_be_large(good: Path, kind: str) -> None:
    spoil, said = hostile.BIG_FILES[kind]
    spoil(good)
    with pytest.raises(ModelError, match=said):
        model_folder.check_folder(good)


def test_a_further_template_may_not_be_large_either(good: Path) -> None:
    (good / "additional_chat_templates").mkdir()
    hostile.sparse("additional_chat_templates/tool_use.jinja", 1 << 30)(good)
    with pytest.raises(ModelError, match="larger than"):
        model_folder.check_folder(good)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_a_pipe_is_not_waited_for(good: Path) -> None:
    os.mkfifo(good / "chat_template.jinja")
    with pytest.raises(ModelError, match="not a file"):
        model_folder.check_folder(good)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.pkl", "vocab.pkl", "vocab.txt", "qwen.tiktoken"])
def test_a_tokenizer_in_another_form_is_refused_by_its_name(good: Path, name: str) -> None:
    hostile.other_tokenizer(name)(good)
    with pytest.raises(ModelError, match=rf"no tokenizer\.json, only {name}"):
        model_folder.check_tokenizer(good)


def test_no_tokenizer_at_all_is_said(good: Path) -> None:
    (good / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json: "):
        model_folder.check_tokenizer(good)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(good: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (good / "inside.json").symlink_to("config.json")
    model_folder.check_folder(good)
    (good / "outside.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="leads out"):
        model_folder.check_folder(good)


def test_the_hubs_cache_may_link_to_its_own_blobs_and_nowhere_else(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    model_folder.check_folder(snapshot)
    (tmp_path / "models--o--n" / "secret").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../secret")
    with pytest.raises(ModelError, match="leads out"):
        model_folder.check_folder(snapshot)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[1]", "no JSON object|not hold a JSON object"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "a": 2}}', "twice"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        (b"{" + b"," * 1_000_001 + b"}", "more than"),
        (b'{"a": [' + b"[],[]," * 400_000 + b"1]}", "more than"),
    ],
)
def test_json_is_strict(data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model_folder.json_object(data, "x.json")


def test_infinity_is_a_number_that_real_configs_hold() -> None:
    assert model_folder.json_object(b'{"time_step_limit": [0.0, Infinity]}', "x") == {
        "time_step_limit": [0.0, float("inf")]
    }


def test_a_small_file_is_read_whole_and_a_large_one_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert model_folder.read_json(tmp_path / "a.json") == {"a": 1}
    hostile.sparse("b.json", model_folder.SMALL_MAX_BYTES + 1)(tmp_path)
    with pytest.raises(ModelError, match="larger than"):
        model_folder.read_small(tmp_path / "b.json")


def test_a_strangers_text_stays_on_one_line() -> None:
    assert model_folder.one_line("a\n b\x1b[31m\u202e.") == "a b?[31m?"
    assert len(model_folder.one_line("x" * 10_000)) == 300
