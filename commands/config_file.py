"""The config file: settings that last, as text for the same parsers that read flags and variables.

Which file it is, whether it may be read, and what stands in it; `commands/options.py` hands that to click. Imports
neither typer nor rich, and a parser only where a file needs it.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vramancer_cli.errors import UsageError

if TYPE_CHECKING:
    import yaml

FILE_NAMES: Final = ("config.toml", "config.yaml", "config.yml")
SIZE_LIMIT_BYTES: Final = 64 * 1024

_SHOWN_CHARACTERS: Final = 40
_SECRET_ENDINGS: Final = ("token", "secret", "password", "api-key")
_PLAIN_TAGS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}

Pairs = list[tuple[str, str | None]]
"""(key, value) in the order of the file; None for a value that is not a single one."""


class ConfigFileError(UsageError):
    """The config file cannot be used."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What was read. `path` None: nothing was, and `looked_for` says where a file would have been.

    `values` has text by key ("node-port"), as it was written.
    """

    path: Path | None
    looked_for: tuple[Path, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict, repr=False)  # one may be a token


def load(named: Path | None, folder: Path, keys: Collection[str]) -> ConfigFile:
    """The file `named`, else the one in `folder`, where there is one; the null device stands for no file.

    Raises ConfigFileError, also for a key that is not among `keys`.
    """
    if named is not None:
        path = named.expanduser()
        return ConfigFile(None) if str(path) == os.devnull else ConfigFile(path, (path,), _read(path, keys))
    places = tuple(folder / name for name in FILE_NAMES)
    found = [place for place in places if os.path.lexists(place)]  # a folder that is closed to us has none for us
    if len(found) > 1:
        raise ConfigFileError(f"There are two config files, {found[0]} and {found[1]}.", hint="Keep one of them.")
    return ConfigFile(found[0], places, _read(found[0], keys)) if found else ConfigFile(None, places)


def is_secret(key: str) -> bool:
    """Whether the value of `key` is nobody else's business. By its ending, so that a new token is covered at once."""
    return key.endswith(_SECRET_ENDINGS)


def _read(path: Path, keys: Collection[str]) -> dict[str, str]:
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigFileError(f"The config file {path} is neither .toml nor .yaml.")
    text, mode = _text(path)
    values = _checked(_toml(text, path) if path.suffix == ".toml" else _yaml(text, path), path, keys)
    secret = next(filter(is_secret, values), None)
    if secret and os.name == "posix" and mode & 0o077:
        raise ConfigFileError(
            f"Others may read {path}, and it holds '{secret}'.", hint=f"Do: chmod 600 {shlex.quote(str(path))}"
        )
    return values


def _text(path: Path) -> tuple[str, int]:
    """(the whole file, its permission bits). The bits are those of the very file that is read."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigFileError(f"{path} is not a file.")
            data = file.read(SIZE_LIMIT_BYTES + 1) if facts.st_size <= SIZE_LIMIT_BYTES else None
    except OSError as error:
        raise ConfigFileError(f"The config file {path} cannot be read: {error.strerror or error}.") from error
    if data is None or len(data) > SIZE_LIMIT_BYTES:
        raise ConfigFileError(f"The config file {path} is larger than {SIZE_LIMIT_BYTES // 1024} KiB.")
    try:
        return data.decode("utf-8-sig"), facts.st_mode  # Windows editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"The config file {path} is not UTF-8 (line {line}).") from error


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for a writer where `path` is a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _toml(text: str, path: Path) -> Pairs:
    import tomllib

    try:
        table = tomllib.loads(text, parse_float=str)  # as written
        return [(key, _as_text(value)) for key, value in table.items()]
    except RecursionError as error:
        raise _not_flat(path) from error
    except ValueError as error:  # also a whole number too long to be one
        raise ConfigFileError(f"The config file {path} is not valid TOML: {error}.") from error


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def _yaml(text: str, path: Path) -> Pairs:
    """Only composed, never constructed: no tag makes an object, nothing is merged, and `0123` stays what it is."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise _not_flat(path) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # its text shows the line, where a token may stand
        mark = getattr(error, "problem_mark", None)
        where = f": line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigFileError(f"The config file {path} is not valid YAML{where}.") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFileError(f"The config file {path} does not consist of lines like 'port: 5000'.")
    return [(_scalar(key) or "", _scalar(value)) for key, value in root.value]


def _scalar(node: yaml.Node) -> str | None:
    """Its text; "" where YAML means nothing; None for what is no single, plain value."""
    if not isinstance(node.value, str) or node.tag not in _PLAIN_TAGS:
        return None
    return "" if node.tag.endswith(":null") else node.value


def _not_flat(path: Path) -> ConfigFileError:
    return ConfigFileError(f"The config file {path} is nested.", hint="It has neither sections nor lists.")


def _checked(pairs: Iterable[tuple[str, str | None]], path: Path, keys: Collection[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for written, text in pairs:
        key, shown = written.replace("_", "-"), repr(written[:_SHOWN_CHARACTERS])
        if text is None:
            hint = "A config file has neither sections nor lists: each line sets one option."
            raise ConfigFileError(f"{shown} in {path} is not a single value.", hint=hint)
        if key not in keys:
            raise ConfigFileError(f"{path} has a setting that does not exist: {shown}.", hint=_nearest(key, keys))
        if key in values:
            raise ConfigFileError(f"{path} sets {shown} twice.")
        if not text.strip():
            raise ConfigFileError(f"{shown} in {path} has no value.", hint="Leave it out for the default.")
        values[key] = text
    return values


def _nearest(key: str, keys: Collection[str]) -> str:
    from difflib import get_close_matches

    meant = get_close_matches(key[:_SHOWN_CHARACTERS].lower(), keys, n=1)
    return f"Did you mean '{meant[0]}'?" if meant else "All of them: vramancer config --example"
