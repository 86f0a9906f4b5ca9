"""`vramancer config`: every setting, its value, and where that comes from. Never imports torch or transport."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from commands import options
from commands.config_file import FILE_NAMES, ConfigFile, is_secret
from commands.setting_sources import by_parameter, lasting, source_of
from commands.terminal import out, plain, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer config
  vramancer config --json | jq '.settings.port'
  vramancer config --example > config.toml

A flag wins over a VRM_* variable, that over the config file, and that over
the default. VRM_CONFIG names another file; the example's lines say the rest."""

_VALUE_CELLS: Final = 28
_CREDENTIALS: Final = re.compile(r"//[^/@\s]*@")
_EXAMPLE_TOP: Final = """\
# Settings of VRAMancer for this machine, each with its default.
# Take away the '#' before a setting to change it. Write folders in full, from the root.
# A VRM_* variable wins over this file, and a flag over both.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """`value` for programs, `written` for people; neither is a secret's. `source`: see setting_sources.source_of."""

    key: str
    value: Any
    written: str
    source: str


def _show_example(invocation: typer.Context, wanted: bool) -> None:
    """Eager, so that it needs no config file that is in order: it may be what repairs one."""
    if wanted:
        typer.echo(example(lasting(invocation)), nl=False)
        raise typer.Exit


@options.spread
def config(
    invocation: typer.Context,
    *,
    as_json: options.Json = False,
    example: Annotated[
        bool,
        options.option("--example", "Write an example config.toml.", is_eager=True, callback=_show_example),
    ] = False,
) -> None:
    """Show every setting, and where its value comes from.

    Secrets are only said to be set or not.
    """
    del example  # its callback did the work
    file: ConfigFile = invocation.params["config"]
    found = _settings(invocation, file)
    if as_json:
        write_json(_as_json(found, file))
    else:
        _show(found, file)


def _settings(invocation: typer.Context, file: ConfigFile) -> list[Setting]:
    """Read as every verb reads them, with no flag given. Raises typer.BadParameter for a value that no verb takes."""
    parameters = lasting(invocation)
    invocation.default_map = by_parameter(file.values, parameters.values())
    return [_setting(invocation, key, parameter) for key, parameter in parameters.items()]


def _setting(invocation: typer.Context, key: str, parameter: Any) -> Setting:
    written, _ = parameter.consume_value(invocation, {})
    parameter.handle_parse_result(invocation, {}, [])
    value = invocation.params[parameter.name]
    if parameter.multiple:
        value = [part for parts in value for part in parts]
    if is_secret(key):
        value = written = "set" if value else "not set"
    source = source_of(invocation, parameter)
    return Setting(key, _public(value), str(_public(_words(parameter, written))), source)


def _words(parameter: Any, written: Any) -> Any:
    """A default that is no value is described, as in --help."""
    if written is None or written == []:
        return parameter.show_default if isinstance(parameter.show_default, str) else "none"
    if parameter.multiple:
        return ",".join(written)
    return _bool_word(written) if isinstance(written, bool) else written


def _bool_word(value: bool) -> str:
    return "true" if value else "false"


def _public(value: Any) -> Any:
    """Ready for JSON, and without the name and password that an URL may hold."""
    return _CREDENTIALS.sub("//***@", str(value)) if isinstance(value, str | Path) else value


def _as_json(found: Sequence[Setting], file: ConfigFile) -> dict[str, Any]:
    return {
        "file": str(file.path) if file.path else None,
        "looked_for": [str(place) for place in file.looked_for],
        "settings": {setting.key: {"value": setting.value, "source": setting.source} for setting in found},
    }


def _show(found: Sequence[Setting], file: ConfigFile) -> None:
    """Lines, not a table that cuts: so that a path can be copied, and a setting found with grep."""
    console = out()
    key_cells = max(len(setting.key) for setting in found)
    value_cells = min(_VALUE_CELLS, max(len(setting.written) for setting in found))
    for setting in found:
        style = "dim" if setting.source == "default" else "bold"
        line = Text.assemble(
            (setting.key.ljust(key_cells), "cyan"), "  ", (plain(setting.written).ljust(value_cells), style), "  "
        )
        console.print(line.append(plain(setting.source), "dim"), soft_wrap=True)
    console.print(f"\n{plain(_file_words(file))}", markup=False, soft_wrap=True)


def _file_words(file: ConfigFile) -> str:
    if file.path:
        return f"Config file: {file.path}"
    if file.looked_for:
        return f"No config file. It would be {file.looked_for[0]} (or {' or '.join(FILE_NAMES[1:])} there)."
    return "No config file is looked for."


def example(parameters: dict[str, Any]) -> str:
    """A config.toml in which every setting is there, and commented out."""
    return _EXAMPLE_TOP + "".join(_example_of(key, parameter) for key, parameter in parameters.items())


def _example_of(key: str, parameter: Any) -> str:
    unset = f" Default: {parameter.show_default}." if isinstance(parameter.show_default, str) else ""
    care = " Nobody else may read the file then: chmod 600." if is_secret(key) else ""
    return f"\n# {parameter.help}{unset}{care}\n# {key} = {_toml_value(parameter)}\n"


def _toml_value(parameter: Any) -> str:
    """The default, or what to fill in. A JSON string is a TOML string too."""
    default = parameter.default
    if isinstance(default, bool):
        return _bool_word(default)
    if isinstance(default, int | float):
        return str(default)
    placeholder = f"<{parameter.metavar or 'TEXT'}>"
    return json.dumps(placeholder if default in (None, []) else str(default), ensure_ascii=False)
