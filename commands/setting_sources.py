"""Where a setting's value comes from: flag, variable, config file or default, as click keeps it in a verb's context.

The options themselves are in `commands/options.py`, the reading of a file in `commands/config_file.py`: neither is
imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import typer

PASSING: Final = frozenset({"code", "config"})
"""Settings of one run, which make no sense in a file."""


def lasting(invocation: typer.Context) -> dict[str, Any]:
    """The option of every setting that a config file may hold, of all verbs, by its key: "node-port"."""
    found: dict[str, Any] = {}
    for command in _commands(invocation.find_root().command):
        for parameter in command.params:
            if parameter.envvar and key_of(parameter) not in PASSING:
                found.setdefault(key_of(parameter), parameter)
    return found


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _commands(inner)


def key_of(parameter: Any) -> str:
    return parameter.opts[0].removeprefix("--")


def by_parameter(values: Mapping[str, str], parameters: Iterable[Any]) -> dict[str, Any]:
    """What a file says, as click's `default_map`. Only for settings: `chat --model` is none, and `model` not meant."""
    told = {p: values[key_of(p)] for p in parameters if p.envvar and key_of(p) in values}
    return {p.name: [text] if p.multiple else text for p, text in told.items()}


def source_of(invocation: typer.Context, parameter: Any) -> str:
    """Where a value comes from: "command line", "VRM_PORT", the config file's path, or "default"."""
    source = invocation.get_parameter_source(parameter.name)
    match source.name if source else "DEFAULT":
        case "ENVIRONMENT":
            return parameter.envvar
        case "DEFAULT_MAP":
            return str(invocation.params["config"].path)
        case "DEFAULT":
            return "default"
        case _:
            return "command line"


def name_source(error: typer.TyperException) -> None:
    """Lets the complaint about a value from a variable or a file say so, instead of naming a flag nobody typed."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if isinstance(error, typer.BadParameter) and context is not None and parameter is not None:
        source = source_of(context, parameter)
        if source not in ("command line", "default"):
            error.param_hint = f"'{key_of(parameter)}' from {source}"
