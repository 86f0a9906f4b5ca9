"""Text and tokens: the model's own tokenizer and chat template, tokens back to text as they come, stop strings.

The only place in serving that knows transformers, and it is imported when the first model is loaded, not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from vramancer_cli.errors import InvalidRequestError, ModelError
from vramancer_cli.models import folder as model_folder
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.serving.sampling_params import MAX_TOP_K, MOST_REPETITION_PENALTY
from vramancer_cli.serving.template import ChatTemplate, RefusedTemplateError
from vramancer_cli.serving.token_bytes import TokenBytes
from vramancer_cli.telemetry import log

REPLACEMENT: Final = "\ufffd"
CONTEXT_TOKENS: Final = 6
MAX_CHARACTER_BYTES: Final = 4
WINDOW_TOKENS: Final = 128
"""Tokens that may wait for a certain ending; more than these are no text, and are let out as they are."""


class _Tokenizer(Protocol):
    """What is used of transformers' PreTrainedTokenizerBase."""

    chat_template: str | dict[str, str] | None
    eos_token_id: int | None
    is_fast: bool
    special_tokens_map: dict[str, Any]
    added_tokens_decoder: dict[int, Any]
    backend_tokenizer: Any

    def __len__(self) -> int: ...
    def get_vocab(self) -> dict[str, int]: ...
    def get_chat_template(self) -> str: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> str: ...
    def convert_ids_to_tokens(self, token_id: int) -> str | None: ...


class TextTools:
    """One model's tokenizer. Encoding takes time for long texts: call it off the event loop; any thread may."""

    def __init__(self, tokenizer: _Tokenizer, stop_token_ids: frozenset[int], defaults: Sampling) -> None:
        self._tokenizer = tokenizer
        self._encoding = threading.Lock()
        self.stop_token_ids = stop_token_ids
        self.defaults = defaults
        self.vocab_size = len(tokenizer)
        self.longest_token_characters = max(map(len, tokenizer.get_vocab()), default=1)
        self.token_bytes = _token_bytes(tokenizer)
        self._template = _template(tokenizer)
        self.encode("settled")  # the first call may still set options inside the tokenizer; later ones only read

    @classmethod
    def load(cls, folder: Path) -> TextTools:
        """Reads only files in `folder`. Raises ModelError."""
        from transformers import AutoTokenizer  # 1 s of import, paid only by a node that answers

        model_folder.check_tokenizer(folder)
        with _strangers(f"The tokenizer in {folder} cannot be read"):
            tokenizer = cast("Any", AutoTokenizer).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not tokenizer.is_fast:
                raise ValueError("its class does not read tokenizer.json")
            return cls(tokenizer, _stop_token_ids(folder, tokenizer.eos_token_id), _default_sampling(folder))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a bare text, with the special tokens that this model puts at a start. Raises ModelError."""
        return self._encode(text)

    def _encode(self, text: str, **options: Any) -> tuple[int, ...]:
        with self._encoding, _strangers("The model's tokenizer failed on this text"):
            return tuple(self._tokenizer.encode(text, **options))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation up to where the assistant speaks. Raises InvalidRequestError."""
        if isinstance(self._template, RefusedTemplateError):
            raise _no_chat(self._template)
        if self._template is None:
            raise InvalidRequestError(
                "This model has no chat template; ask it through /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        try:
            prompt = self._template.render(messages, self._tokenizer.special_tokens_map)
        except RefusedTemplateError as error:
            raise _no_chat(error) from error
        return self._encode(prompt, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer:
        return Detokenizer(self.decode, prompt)


def _token_bytes(tokenizer: _Tokenizer) -> TokenBytes:
    decoder = tokenizer.backend_tokenizer.decoder
    state: bytes | None = decoder.__getstate__() if decoder is not None else None
    added = tokenizer.added_tokens_decoder
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    return TokenBytes(tokenizer.convert_ids_to_tokens, state, special, frozenset(added))


def _stop_token_ids(folder: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """What ends an answer, by generation_config.json (else config.json) and by the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        declared = _json(folder / name).get("eos_token_id")
        if declared is not None:
            break
    else:
        declared = None
    ids = cast("list[Any]", declared) if isinstance(declared, list) else [declared]
    return frozenset(i for i in (*ids, tokenizer_eos) if isinstance(i, int))


def _default_sampling(folder: Path) -> Sampling:
    """How the checkpoint's makers sample it (generation_config.json), within what a request may ask for."""
    declared = _json(folder / "generation_config.json")
    greedy = declared.get("do_sample") is False
    return Sampling(
        temperature=0.0 if greedy else _declared(declared, "temperature", 1.0, most=2.0),
        top_p=_declared(declared, "top_p", 1.0, most=1.0),
        top_k=int(_declared(declared, "top_k", 0, most=MAX_TOP_K)),
        min_p=_declared(declared, "min_p", 0.0, most=1.0),
        repetition_penalty=_declared(declared, "repetition_penalty", 1.0, most=MOST_REPETITION_PENALTY),
    )


def _declared(config: Mapping[str, Any], name: str, default: float, *, most: float) -> float:
    value = config.get(name)
    return float(value) if isinstance(value, (int, float)) and 0 < value <= most else default


def _json(path: Path) -> dict[str, Any]:
    return model_folder.read_json(path) if path.is_file() else {}


def _template(tokenizer: _Tokenizer) -> ChatTemplate | RefusedTemplateError | None:
    """A template that is refused leaves a model that completes texts: its sentence is for whoever wants to chat."""
    if not tokenizer.chat_template:
        return None
    try:
        return ChatTemplate(tokenizer.get_chat_template())
    except RefusedTemplateError as error:
        log.get("text").warning("chats are refused", why=str(error))
        return error
    except ValueError:  # several templates, and none of them the default one
        return None


def _no_chat(error: RefusedTemplateError) -> InvalidRequestError:
    return InvalidRequestError(f"{error} {error.hint}", param="messages", code="chat_template_refused")


@contextmanager
def _strangers(failed: str) -> Generator[None]:
    """What a stranger's tokenizer does to its library becomes a ModelError; a panic of Rust is no Exception."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{failed}: {model_folder.one_line(error)}.") from error


class Detokenizer:
    """Token ids in, text out, never half a character and never text that a later token would change.

    Text is the growth of decode(window). The window opens with the last tokens already shown (at first: the end of
    the prompt), because many tokenizers write a word's leading space only after another word.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = _context(decode, prompt)
        self._shown_tokens = len(self._window)
        self._shown = len(_certain(decode(self._window))) if self._window else 0

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; may be empty."""
        self._window.extend(token_ids)
        text = self._decode(self._window)
        certain = text if len(self._window) > WINDOW_TOKENS else _certain(text)
        piece = certain[self._shown :]
        if piece and certain == text:
            self._slide()
        else:
            self._shown = max(self._shown, len(certain))
        return piece

    def finish(self) -> str:
        """What was held back; a character that never got its last bytes shows as U+FFFD."""
        piece = self._decode(self._window)[self._shown :] if self._window else ""
        self._shown += len(piece)
        return piece

    def _slide(self) -> None:
        """Keep the tokens of the last piece as context; they begin and end at whole characters."""
        del self._window[: self._shown_tokens]
        self._shown_tokens = len(self._window)
        self._shown = len(self._decode(self._window))


def _context(decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> list[int]:
    """The last few tokens of the prompt, from where a character begins; none if no such place is near."""
    for size in range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_CHARACTER_BYTES):
        tail = list(prompt[-size:])
        if not decode(tail).startswith(REPLACEMENT):
            return tail
    return []


def _certain(text: str) -> str:
    """The text without what may be the beginning of a character: the replacement characters at its end.

    All of them, for tokenizers that fall back to bytes show a whole run of bytes as replacements while its last
    character is not complete.
    """
    return text.rstrip(REPLACEMENT)


class StopFilter:
    """Text through, up to the first stop string, which is not let out. Holds back only what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text to let out, whether a stop string was met). After a stop nothing more may be pushed."""
        text = self._held + text
        cut = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self._held = ""
            return text[:cut], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest proper beginning of `stop` that `text` ends with, in characters."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
