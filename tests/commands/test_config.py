from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from commands import config, options, setting_sources
from commands.app import app
from commands.config_file import load
from tests.helpers.verbs import InProcess, run_verb

TOKEN = "s3cret-t0ken"
Write = Callable[[str], Path]


@pytest.fixture
def verb_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """On a machine whose own configuration folder is `tmp_path`."""
    ready = InProcess(tmp_path, monkeypatch, capsys)
    for name in ("VRM_STATE_DIR", "VRM_CONFIG"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(options, "DEFAULT_STATE_FOLDER", tmp_path)
    return ready


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    return written


def lines_of(text: str) -> dict[str, tuple[str, str]]:
    """(value, source) by key, as a person reads the lines."""
    parts = [line.split("  ") for line in text.splitlines() if "  " in line]
    return {first.strip(): (" ".join(rest[:-1]).strip(), rest[-1].strip()) for first, *rest in parts}


def test_each_value_and_where_it_comes_from(write: Write, verb_of: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('port = 7000\nnode_port = 7001\nname = "attic"\nmemory = "6GiB"\nlog-json = true\n')
    monkeypatch.setenv("VRM_PORT", "8000")
    ran = verb_of("config")
    assert (ran.code, ran.err) == (0, "")
    shown = lines_of(ran.out)
    assert shown["port"] == ("8000", "VRM_PORT")
    assert shown["node-port"] == ("7001", str(path))
    assert shown["name"] == ("attic", str(path))
    assert shown["memory"] == ("6GiB", str(path))
    assert shown["log-json"] == ("true", str(path))
    assert shown["host"] == ("127.0.0.1", "default")
    assert shown["context"] == ("from the model", "default")
    assert shown["api-token"] == ("not set", "default")
    assert ran.out.splitlines()[-1] == f"Config file: {path}"


def test_json_has_the_values_as_the_program_sees_them(write: Write, verb_of: InProcess) -> None:
    path = write('port = 7000\nmemory = "6GiB"\ndevice = "CUDA:1,cpu"\nlog-json = false\n')
    shown = json.loads(verb_of("config", "--json").out)
    assert shown["file"] == str(path)
    settings = shown["settings"]
    assert settings["port"] == {"value": 7000, "source": str(path)}
    assert settings["memory"]["value"] == [6 * 2**30]
    assert settings["device"]["value"] == ["cuda:1", "cpu"]
    assert settings["log-json"] == {"value": False, "source": str(path)}
    assert settings["node-port"] == {"value": 5001, "source": "default"}
    assert settings["model"] == {"value": None, "source": "default"}


def test_without_a_file_it_says_where_one_would_be(verb_of: InProcess, tmp_path: Path) -> None:
    assert verb_of("config").out.splitlines()[-1] == (
        f"No config file. It would be {tmp_path / 'config.toml'} (or config.yaml or config.yml there)."
    )
    shown = json.loads(verb_of("config", "--json").out)
    assert shown["file"] is None
    assert shown["looked_for"][0] == str(tmp_path / "config.toml")
    assert {setting["source"] for setting in shown["settings"].values()} == {"default"}
    assert "looked for" in verb_of("config", "--config", os.devnull).out


async def test_as_a_process_with_a_file_that_a_variable_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("port: 7000\n")
    ran = await run_verb(tmp_path, "config", VRM_CONFIG=str(path))
    assert (ran.code, ran.err) == (0, "")
    assert lines_of(ran.out)["port"] == ("7000", str(path))
    assert lines_of(ran.out)["state-dir"][1] == "VRM_STATE_DIR"
    assert "\x1b" not in ran.out


def test_a_secret_is_only_set_or_not(write: Write, verb_of: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f'api-token = "{TOKEN}"\n')
    assert lines_of(verb_of("config").out)["api-token"] == ("set", str(path))
    assert json.loads(verb_of("config", "--json").out)["settings"]["api-token"]["value"] == "set"
    assert TOKEN not in verb_of("config").out + verb_of("config", "--json").out
    path.unlink()
    monkeypatch.setenv("VRM_API_TOKEN", TOKEN)
    assert lines_of(verb_of("config").out)["api-token"] == ("set", "VRM_API_TOKEN")
    assert TOKEN not in verb_of("config").out + verb_of("config", "--json").out
    monkeypatch.delenv("VRM_API_TOKEN")
    assert json.loads(verb_of("config", "--json").out)["settings"]["api-token"]["value"] == "not set"


def test_an_url_is_shown_without_its_password(write: Write, verb_of: InProcess) -> None:
    write(f'url = "http://me:{TOKEN}@desk:5000"\n')
    for ran in (verb_of("config"), verb_of("config", "--json")):
        assert TOKEN not in ran.out
        assert "http://***@desk:5000" in ran.out


def test_a_value_cannot_command_the_terminal(write: Write, verb_of: InProcess) -> None:
    write('model = "\\u001b[2Jmine"\n')
    assert "\x1b" not in verb_of("config").out


def test_every_value_is_checked_here(write: Write, verb_of: InProcess) -> None:
    path = write('context = "long"\n')
    ran = verb_of("config")
    assert (ran.code, ran.out) == (2, "")
    assert ran.error_lines == [
        f"error: Invalid value for 'context' from {path}: 'long' is not a number from 16 to 16777216. "
        "A context is counted in tokens. See 'vramancer config --help'."
    ]


def test_a_wrong_variable_is_named_too(verb_of: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRM_PORT", "70000")
    ran = verb_of("config")
    assert ran.code == 2
    assert "Invalid value for 'port' from VRM_PORT: '70000' is not" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["config", "--help"], ["start", "--help"], ["config", "--example"], []],
    ids=" ".join,
)
def test_a_broken_file_breaks_no_help(arguments: list[str], write: Write, verb_of: InProcess) -> None:
    expected = verb_of(*arguments)
    write("port = = 1\n")
    assert verb_of("config").code == 2, "the file is broken"
    assert verb_of("stop").code == 2
    assert verb_of(*arguments) == expected
    assert (expected.code, expected.err) == (0, "")


def test_help_shows_the_programs_defaults_not_the_files(write: Write, verb_of: InProcess) -> None:
    write("port = 7777\n")
    assert "7777" not in verb_of("start", "--help").out


def test_the_example_is_a_file_of_every_setting_at_its_default(write: Write, verb_of: InProcess) -> None:
    ran = verb_of("config", "--example")
    assert (ran.code, ran.err) == (0, "")
    assert tomllib.loads(ran.out) == {}, "nothing is set by it"
    settings = json.loads(verb_of("config", "--json").out)["settings"]
    uncommented = [line.removeprefix("# ") for line in ran.out.splitlines() if " = " in line]
    given = tomllib.loads("\n".join(uncommented))
    assert list(given) == list(settings)
    real = {key: value for key, value in given.items() if not str(value).startswith("<")}
    assert real == {key: setting["value"] for key, setting in settings.items() if key in real}
    assert {"host", "port", "node-port", "name", "dtype", "state-dir", "log-json"} <= real.keys()


def test_the_example_can_be_used_as_it_is(write: Write, verb_of: InProcess) -> None:
    path = write(verb_of("config", "--example").out)
    assert verb_of("config").out.splitlines()[-1] == f"Config file: {path}"
    text = path.read_text("utf-8")
    assert "# port = 5000\n" in text
    write(text.replace("# port = 5000", "port = 7000"))
    assert lines_of(verb_of("config").out)["port"] == ("7000", str(path))


def test_the_help_has_examples_and_fits_80_columns(verb_of: InProcess) -> None:
    ran = verb_of("config", "--help")
    assert ran.code == 0
    assert "   vramancer config" in ran.out.split("Examples")[1]
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    paragraph = ran.out.split("--example > config.toml")[1].strip()
    assert len(paragraph.splitlines()) == 2, "no line of it is broken once more"


def test_every_setting_with_a_variable_may_stand_in_a_file_but_those_of_one_run(tmp_path: Path) -> None:
    program = typer.main.get_command(app)
    context = typer.Context(program)
    keys = setting_sources.lasting(context)
    assert {
        "model",
        "port",
        "node-port",
        "memory",
        "device",
        "state-dir",
        "url",
        "api-token",
        "log-json",
    } <= keys.keys()
    assert keys.keys().isdisjoint(setting_sources.PASSING)
    (tmp_path / "config.toml").write_text(
        "\n".join(line[2:] for line in config.example(keys).splitlines() if " = " in line)
    )
    (tmp_path / "config.toml").chmod(0o600)
    assert load(None, tmp_path, keys).values.keys() == keys.keys()
