"""One line for each thing that happened, on stderr: time, level, room, event, then key=value; or JSON.

The lines of libraries (standard `logging`, `warnings`) take the same road. Nothing here ever writes to stdout, secrets
are cut out by their key, and what comes from other machines cannot break a line or steer a terminal.
Never imports an upper room.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter, add_log_level, filter_by_level

HOUSE: Final = "vramancer"
SECRET_WORDS: Final = frozenset({"code", "token", "key", "secret", "authorization", "password"})
HARMLESS_KEYS: Final = frozenset({"exit_code", "status_code"})
REDACTED: Final = "[redacted]"
MAX_VALUE_CHARS: Final = 2000
TRACE_FRAMES: Final = 6

Event = MutableMapping[str, Any]


def get(room: str) -> BoundLogger:
    """A room's logger; may be asked for before `configure`, until which warnings and errors alone reach stderr."""
    logger = logging.getLogger(f"{HOUSE}.{room}")
    chain = (filter_by_level, *_ENRICH, ProcessorFormatter.wrap_for_formatter)
    return cast(BoundLogger, structlog.wrap_logger(logger, chain, BoundLogger, room=room))


def configure(json: bool = False, level: str = "info") -> None:
    """Start logging, from this process's house at `level`, from libraries warnings and worse. May be called again.

    Raises ValueError for an unknown level name.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"There is no log level {level!r}; use debug, info, warning or error.")
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _StderrHandler)]
    root.addHandler(_StderrHandler(as_json=json))
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger(HOUSE).setLevel(number)
    logging.captureWarnings(True)
    warnings.formatwarning = _warning_line


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at that moment."""

    def __init__(self, *, as_json: bool) -> None:
        logging.Handler.__init__(self)
        last = (ProcessorFormatter.remove_processors_meta, _as_json if as_json else _as_text)
        self.setFormatter(ProcessorFormatter(processors=last, foreign_pre_chain=(_name_room, *_ENRICH)))

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


# --- what is done to every event -----------------------------------------------------------------------------


def _name_room(_logger: object, _method: str, event: Event) -> Event:
    event["room"] = event["_record"].name
    return event


def _stamp(_logger: object, _method: str, event: Event) -> Event:
    event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _flatten_exception(_logger: object, _method: str, event: Event) -> Event:
    """An exception as two values, `error` and `at` (innermost frame first), instead of a block of lines."""
    info = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    if info and error is not None:
        frames = traceback.extract_tb(error.__traceback__)[: -TRACE_FRAMES - 1 : -1]
        event["error"] = f"{type(error).__name__}: {error}"
        event["at"] = " < ".join(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)
    return event


def _short(filename: str) -> str:
    return "/".join(filename.replace("\\", "/").split("/")[-2:])


def _make_safe(_logger: object, _method: str, event: Event) -> Event:
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = _safe(key, value)
    return event


def _safe(key: str, value: object) -> object:
    words = key.lower().replace("-", "_").split("_")
    if words[-1] in SECRET_WORDS and key not in HARMLESS_KEYS:
        return REDACTED
    if isinstance(value, Mapping):
        pairs = cast(Mapping[object, object], value).items()
        return {str(inner): _safe(str(inner), item) for inner, item in pairs}
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
        return f"{value[:MAX_VALUE_CHARS]}… ({len(value)} characters)"
    return value


_ENRICH: Final = (add_log_level, _stamp, _flatten_exception, _make_safe)


# --- how it is written ---------------------------------------------------------------------------------------


def _as_text(_logger: object, _method: str, event: Event) -> str:
    head = f"{event.pop('time')} {event.pop('level'):<8} {_plain(event.pop('room')):<12} {_plain(event.pop('event'))}"
    return " ".join((head, *(f"{_plain(key)}={_quoted(value)}" for key, value in event.items())))


def _as_json(_logger: object, _method: str, event: Event) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "room", "event")}
    return json.dumps({**first, **event}, default=str)


def _plain(value: object) -> str:
    """Line ends and control characters become visible escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


def _quoted(value: object) -> str:
    text = _plain(value)
    return text if text and not set(text) & set(' "=') else '"' + text.replace('"', '\\"') + '"'


def _warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> str:
    return f"{category.__name__}: {message} ({_short(filename)}:{lineno})"
