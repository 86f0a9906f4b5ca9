from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.helpers import hostile_checkpoints as hostile
from tests.helpers.scripted_server import byte_level_folder
from vramancer_cli.errors import InvalidRequestError, ModelError
from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.serving.template import ChatTemplate
from vramancer_cli.serving.text import REPLACEMENT, WINDOW_TOKENS, StopFilter, TextTools

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs", "Co"]), max_size=30)
SPLITS = st.lists(st.integers(1, 4), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def tools(folder: Path) -> TextTools:
    return TextTools.load(folder)


@pytest.fixture(scope="module")
def spaced(spaced_folder: Path) -> TextTools:
    return TextTools.load(spaced_folder)


def told(tools: TextTools, ids: tuple[int, ...], prompt: tuple[int, ...] = (), sizes: list[int] | None = None) -> str:
    """The text of `ids` pushed in groups of `sizes`, checked at every push against the text so far."""
    detokenizer, text, at = tools.detokenizer(prompt), "", 0
    for size in [*(sizes or []), *[1] * len(ids)]:
        text += detokenizer.push(ids[at : at + size])
        at += size
    return text + detokenizer.finish()


@settings(max_examples=80, deadline=None)
@given(TEXT, SPLITS)
@example("é漢🙂 e\u0301 👩‍👩‍👧", [1])
@example("\ufffd\ufffd\ufffd\ufffd\ufffd a", [3])
def test_byte_level_text_comes_back_whole_however_it_is_cut(tools: TextTools, text: str, sizes: list[int]) -> None:
    assert told(tools, tools.encode(text), sizes=sizes) == text


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_no_piece_ends_within_a_character(tools: TextTools, text: str) -> None:
    detokenizer, so_far = tools.detokenizer(()), ""
    for token in tools.encode(text):
        so_far += detokenizer.push([token])
        assert text.startswith(so_far)


def test_text_is_let_out_as_soon_as_it_is_certain(tools: TextTools) -> None:
    detokenizer = tools.detokenizer(())
    assert [detokenizer.push([token]) for token in tools.encode("a€b")] == ["a", "", "", "€", "b"]


def test_leading_spaces_between_words_stay_and_none_appears_before_the_first(spaced: TextTools) -> None:
    ids = spaced.encode("Machines share one model")
    assert told(spaced, ids) == "Machines share one model"


def test_a_continuation_keeps_the_space_after_the_prompt(spaced: TextTools) -> None:
    ids = spaced.encode("Machines share one model")
    assert told(spaced, ids[2:], prompt=ids[:2]) == " one model"


@settings(max_examples=60, deadline=None)
@given(st.text("aé漢🙂s ", max_size=12), st.integers(0, 40))
def test_byte_fallback_text_comes_back_after_any_prompt(spaced: TextTools, text: str, cut: int) -> None:
    ids = spaced.encode("Machines " + text + "s")
    whole = [i for i in range(1, len(ids)) if not spaced.decode(ids[:i]).endswith(REPLACEMENT)]
    at = whole[cut % len(whole)]
    assert told(spaced, ids[at:], prompt=ids[:at]) == spaced.decode(ids)[len(spaced.decode(ids[:at])) :]


def test_byte_fallback_waits_for_the_whole_character(spaced: TextTools) -> None:
    ids = spaced.encode("Machines é漢🙂 share")
    assert told(spaced, ids) == "Machines é漢🙂 share"
    detokenizer = spaced.detokenizer(())
    assert all(REPLACEMENT not in detokenizer.push([token]) for token in ids)


def test_an_unfinished_character_shows_at_the_end_and_only_there(tools: TextTools) -> None:
    half = tools.encode("a€")[:-1]
    detokenizer = tools.detokenizer(())
    assert "".join(detokenizer.push([token]) for token in half) == "a"
    assert detokenizer.finish() == REPLACEMENT
    assert detokenizer.finish() == ""


def test_a_character_begun_by_the_prompt_is_finished_by_the_answer(tools: TextTools) -> None:
    ids = tools.encode("a€b")
    assert told(tools, ids[2:], prompt=ids[:2]) == "€b"


def test_special_tokens_are_never_shown(tools: TextTools) -> None:
    assert told(tools, (*tools.encode("a"), 0, 1, *tools.encode("b"))) == "ab"


def test_bytes_that_never_become_text_do_not_pile_up(tools: TextTools) -> None:
    stray = tools.encode("€")[1]  # a continuation byte
    detokenizer = tools.detokenizer(())
    shown = [len(detokenizer.push([stray])) for _ in range(600)]
    assert sum(shown) >= 400 and max(shown) <= 2 * WINDOW_TOKENS
    assert sum(shown) + len(detokenizer.finish()) == 600


def test_stop_tokens_come_from_the_generation_config_and_the_tokenizer(folder: Path) -> None:
    assert TextTools.load(folder).stop_token_ids == {0, 1}


def test_chat_is_encoded_by_the_models_own_template(tools: TextTools) -> None:
    ids = tools.encode_chat([{"role": "user", "content": "hi"}])
    assert (ids[0], ids[-2], ids[-1]) == (1, 0, 2)
    assert tools.decode(ids) == "hi"


def test_a_conversation_that_the_template_refuses_is_an_invalid_request(tools: TextTools) -> None:
    with pytest.raises(InvalidRequestError, match="system comes first") as caught:
        tools.encode_chat([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}])
    assert caught.value.param == "messages"


def test_a_model_without_a_template_cannot_chat_and_says_where_to_go(tmp_path: Path) -> None:
    tools = TextTools.load(byte_level_folder(tmp_path, template=None))
    with pytest.raises(InvalidRequestError, match="/v1/completions") as caught:
        tools.encode_chat([{"role": "user", "content": "a"}])
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**10 }}", "{{ ''.__class__.__mro__ }}", "x" * (1 << 20), "{% if %}", "{% include 'x' %}"]
)
def test_a_refused_template_leaves_a_model_that_completes(tmp_path: Path, template: str) -> None:
    tools = TextTools.load(byte_level_folder(tmp_path, template=template))
    with pytest.raises(InvalidRequestError, match=r"chat template is .*/v1/completions") as caught:
        tools.encode_chat([{"role": "user", "content": "a"}])
    assert (caught.value.param, caught.value.code) == ("messages", "chat_template_refused")
    assert tools.decode(tools.encode("still here")) == "still here"


def test_a_template_that_runs_away_with_one_chat_is_refused_for_that_one(tmp_path: Path) -> None:
    template = "{% if messages|length > 1 %}{{ 'a' * 10**10 }}{% endif %}{{ messages[0].content }}"
    tools = TextTools.load(byte_level_folder(tmp_path, template=template))
    hello = {"role": "user", "content": "hello"}
    with pytest.raises(InvalidRequestError, match="too much text") as caught:
        tools.encode_chat([hello, hello])
    assert caught.value.code == "chat_template_refused"
    assert tools.decode(tools.encode_chat([hello])) == "hello"


def test_completions_are_encoded_while_a_template_works(tmp_path: Path) -> None:
    """A rendering holds nothing that a bare text needs."""
    tools = TextTools.load(byte_level_folder(tmp_path))
    chat = tools._template
    assert isinstance(chat, ChatTemplate)
    with chat._rendering:
        assert tools.encode("a")


def test_the_default_one_of_several_templates_is_used(tmp_path: Path) -> None:
    byte_level_folder(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    tools = TextTools.load(tmp_path)
    assert tools.decode(tools.encode_chat([{"role": "user", "content": "a"}])) == "one"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several[1:]}))
    with pytest.raises(InvalidRequestError, match="no chat template"):
        TextTools.load(tmp_path).encode_chat([{"role": "user", "content": "a"}])


def test_a_chat_has_the_ids_that_transformers_gives_it() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <|end|> there"}]
    expected = AutoTokenizer.from_pretrained(builtin_folder()).apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    assert list(TextTools.load(builtin_folder()).encode_chat(chat)) == expected


BROKEN: dict[str, bytes | Callable[[dict[str, Any]], None]] = {
    "no json": b"nonsense",
    "not text": b"\xff\xfe",
    "deep": b'{"model": ' + b"[" * 200_000,
    "a deep normalizer": b'{"normalizer": ' + b'{"type":"Sequence","normalizers":[' * 5_000 + b"]}" * 5_000 + b"}",
    "no vocabulary": lambda tokenizer: tokenizer["model"].pop("vocab"),
    "other merges": lambda tokenizer: tokenizer["model"].update(merges=[["nobody", "knows"]]),
    "negative ids": lambda tokenizer: tokenizer["model"]["vocab"].update(a=-1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tokenizer_is_a_model_error_in_one_line(tmp_path: Path, kind: str) -> None:
    path = byte_level_folder(tmp_path) / "tokenizer.json"
    change = BROKEN[kind]
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        tokenizer = json.loads(path.read_text())
        change(tokenizer)
        path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="tokenizer") as caught:
        TextTools.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.pkl", "vocab.txt"])
def test_a_tokenizer_in_another_form_is_never_opened(tmp_path: Path, name: str) -> None:
    folder = byte_level_folder(tmp_path / "m")
    hostile.other_tokenizer(name)(folder)
    with pytest.raises(ModelError, match=rf"no tokenizer\.json, only {name}"):
        TextTools.load(folder)
    assert not hostile.marker_of(folder).exists()


def test_code_beside_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "m")
    hostile.put_code(folder)
    hostile.put_pickles(folder)
    hostile.brings_code("tokenizer_config.json")(folder)  # refused where folders are found; here it is ignored
    assert TextTools.load(folder).encode("a")
    assert not hostile.marker_of(folder).exists()


def test_a_panic_inside_the_tokenizer_is_a_model_error(tools: TextTools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust's panics are no Exception in Python, and would pass every handler."""

    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> list[int]:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(tools, "_tokenizer", SimpleNamespace(encode=panic))
    with pytest.raises(ModelError, match="index out of bounds"):
        tools.encode("a")


def test_a_folder_without_a_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="tokenizer"):
        TextTools.load(tmp_path)


def test_a_stop_string_across_pieces_is_met_and_not_let_out() -> None:
    stops = StopFilter(["END", "\n\n"])
    assert stops.push("one E") == ("one ", False)
    assert stops.push("N") == ("", False)
    assert stops.push("Q\n") == ("ENQ", False)
    assert stops.push("\nafter") == ("", True)


def test_what_only_looked_like_a_stop_comes_out_at_the_end() -> None:
    stops = StopFilter(["END"])
    assert stops.push("the EN") == ("the ", False)
    assert stops.finish() == "EN"


def test_the_earliest_stop_wins() -> None:
    assert StopFilter(["later", "now"]).push("a now b later") == ("a ", True)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), SPLITS)
def test_filtered_text_is_the_text_before_the_first_stop(text: str, stops: list[str], sizes: list[int]) -> None:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    filter_, out, at, stopped = StopFilter(stops), "", 0, False
    for size in [*sizes, *[1] * len(text)]:
        if not stopped and at < len(text):
            piece, stopped = filter_.push(text[at : at + size])
            out, at = out + piece, at + size
    whole = out + ("" if stopped else filter_.finish())
    if sizes == [1] * len(sizes) and ends:  # one character at a time: the stop that ends first is met first
        first = min(at + len(stop) for stop in stops if (at := text.find(stop)) >= 0)
        assert any(whole + stop == text[:first] for stop in stops)
    elif not ends:
        assert whole == text
    assert stopped == bool(ends) and text.startswith(whole)
    assert all(stop not in whole for stop in stops)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (1.0, 1.0)),
        ({"temperature": 0.6, "top_p": 0.9}, (0.6, 0.9)),
        ({"do_sample": False, "temperature": 0.6}, (0.0, 1.0)),
        ({"temperature": "hot", "top_p": 7}, (1.0, 1.0)),
    ],
)
def test_the_checkpoint_says_how_it_is_sampled(
    tmp_path: Path, config: dict[str, object], expected: tuple[float, float]
) -> None:
    byte_level_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = TextTools.load(tmp_path).defaults
    assert (defaults.temperature, defaults.top_p) == expected
