from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from commands import config_file
from commands.config_file import SIZE_LIMIT_BYTES, ConfigFileError, load

KEYS = ("port", "node-port", "name", "memory", "log-json", "api-token")
TOKEN = "s3cret-t0ken"
posix = pytest.mark.skipif(os.name != "posix", reason="permission bits")


def written(folder: Path, text: str | bytes, name: str = "config.toml", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def values(path: Path) -> Mapping[str, str]:
    return load(path, path.parent, KEYS).values


def complaint(path: Path) -> str:
    """The one line that a person sees for this file."""
    with pytest.raises(ConfigFileError) as caught:
        load(path, path.parent, KEYS)
    assert caught.value.exit_code == 2
    shown = f"{caught.value} {caught.value.hint}".rstrip()
    assert str(path) in shown
    assert "\n" not in shown
    assert TOKEN not in shown
    return shown


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml = written(tmp_path, '# mine\nport = 7000\nnode_port = 7001\nname = "attic"\nlog-json = true\nmemory = 1.50\n')
    yaml = written(
        tmp_path, "# mine\nport: 7000\nnode_port: 7001\nname: attic\nlog-json: true\nmemory: 1.50\n", "c.yml"
    )
    said = {"port": "7000", "node-port": "7001", "name": "attic", "log-json": "true", "memory": "1.50"}
    assert values(toml) == said
    assert values(yaml) == said


def test_yaml_guesses_no_types(tmp_path: Path) -> None:
    """An octal, a bool and a date are the text that stands there: a token must not become another one."""
    text = "api-token: 0123\nname: yes\nmemory: 2026-01-01\n"
    assert values(written(tmp_path, text, "c.yaml")) == {"api-token": "0123", "name": "yes", "memory": "2026-01-01"}


@pytest.mark.parametrize("name", config_file.FILE_NAMES)
def test_the_file_of_the_folder_is_found(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, "port = 1" if name.endswith("toml") else "port: 1", name)
    found = load(None, tmp_path, KEYS)
    assert (found.path, found.values) == (path, {"port": "1"})


def test_no_file_is_nothing_set_and_says_where_one_would_be(tmp_path: Path) -> None:
    found = load(None, tmp_path / "none", KEYS)
    assert (found.path, found.values) == (None, {})
    assert [place.name for place in found.looked_for] == ["config.toml", "config.yaml", "config.yml"]


@pytest.mark.parametrize(("one", "other"), [("config.toml", "config.yaml"), ("config.yaml", "config.yml")])
def test_two_files_are_refused_by_name(one: str, other: str, tmp_path: Path) -> None:
    first, second = written(tmp_path, "", one), written(tmp_path, "", other)
    with pytest.raises(ConfigFileError) as caught:
        load(None, tmp_path, KEYS)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    assert load(first, tmp_path, KEYS).path == first, "a file that was named is the one"


def test_the_null_device_stands_for_no_file(tmp_path: Path) -> None:
    written(tmp_path, "port = 1")
    assert load(Path(os.devnull), tmp_path, KEYS).values == {}


def test_a_home_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path))
    written(tmp_path, "port = 1", "mine.toml")
    assert load(Path("~/mine.toml"), tmp_path, KEYS).values == {"port": "1"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff# a mark\r\n"])
@pytest.mark.parametrize("name", ["config.toml", "config.yaml"])
def test_a_file_may_be_empty(name: str, text: str, tmp_path: Path) -> None:
    assert values(written(tmp_path, text, name)) == {}


def test_a_windows_editor_may_have_written_it(tmp_path: Path) -> None:
    assert values(written(tmp_path, "\ufeffport = 1\r\nname = 'é'\r\n")) == {"port": "1", "name": "é"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.toml", "port = 1\nname = \n", "TOML: Invalid value (at line 2"),
        ("c.toml", f"api-token = {TOKEN}\n", "at line 1"),
        ("c.yaml", "port: 1\nname: [a\n", "YAML: line 3"),
        ("c.yaml", f"port: 1\napi-token: '{TOKEN}\n", "YAML: line 3"),
        ("c.yaml", f"port: 1\napi-token: *{TOKEN}\n", "YAML: line 2"),
        ("c.yaml", 'name: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("c.yaml", "name: \x07\n", "not valid YAML"),
        ("c.yaml", "port: 1\n---\nport: 2\n", "not valid YAML"),
        ("c.toml", b"port = 1\n\nname = '\xff'\n", "not UTF-8 (line 3)"),
        ("c.yaml", TOKEN, "lines like 'port: 5000'"),
        ("c.yaml", "- port\n", "lines like 'port: 5000'"),
        ("c.toml", "port = " + "[" * 30000, "nested"),
        ("c.yaml", "port: " + "[" * 30000, "nested"),
        ("c.toml", "port = 0x" + "f" * 60000, "digits"),
        ("c.json", "{}", "neither .toml nor .yaml"),
        ("c.toml", "[port]\nname = 'x'\n", "'port' in"),
        ("c.toml", "[node]\nport = 1\n", "neither sections nor lists"),
        ("c.toml", "port = [1, 2]\n", "not a single value"),
        ("c.toml", "name = 2026-01-01\n", "not a single value"),
        ("c.yaml", "name: {a: b}\n", "not a single value"),
        ("c.yaml", f"api-token: !secret {TOKEN}\n", "not a single value"),
        ("c.yaml", f"name: !!python/object/apply:os.system ['{TOKEN}']\n", "not a single value"),
        ("c.toml", "port = 1\nnode-port = 2\nnode_port = 3\n", "sets 'node_port' twice"),
        ("c.yaml", "port: 1\nport: 2\n", "sets 'port' twice"),
        ("c.toml", "port = 1\nport = 2\n", "not valid TOML"),
        ("c.toml", "name = ' '\n", "'name' in"),
        ("c.yaml", "name:\n", "has no value"),
        ("c.yaml", "name: ~\n", "has no value"),
        ("c.toml", "prot = 1\n", "does not exist: 'prot'. Did you mean 'port'?"),
        ("c.yaml", "node_prot: 1\n", "does not exist: 'node_prot'. Did you mean 'node-port'?"),
        ("c.toml", "VRM_MEMORY = 1\n", "Did you mean 'memory'?"),
        ("c.toml", "code = 'x'\n", "vramancer config --example"),
        ("c.toml", '"\\u001b[2J' + "x" * 5000 + '" = 1\n', "'\\x1b[2J"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(name: str, text: str | bytes, words: str, tmp_path: Path) -> None:
    shown = complaint(written(tmp_path, text, name))
    assert words in shown
    assert len(shown) < 400
    assert "\x1b" not in shown


def test_a_yaml_bomb_is_no_work(tmp_path: Path) -> None:
    bomb = "a: &a {x: 1}\n" + "".join(
        f"{n}: &{n} {{<<: [{', '.join([f'*{m}'] * 9)}]}}\n" for m, n in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    assert "not a single value" in complaint(written(tmp_path, bomb, "c.yaml"))


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in complaint(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    complaint(tmp_path / "folder.toml")


@posix
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is not a file" in complaint(tmp_path / "pipe.toml")


def test_a_link_to_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigFileError, match="cannot be read"):
        load(None, tmp_path, KEYS)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    full = written(tmp_path, b"#" * SIZE_LIMIT_BYTES)
    assert values(full) == {}
    with full.open("ab") as file:
        file.write(b"#")
    assert "larger than 64 KiB" in complaint(full)
    os.truncate(full, 2**40)
    assert "larger than 64 KiB" in complaint(full)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
@pytest.mark.parametrize(
    ("name", "text"), [("my config.toml", f'api-token = "{TOKEN}"'), ("c.yml", f"api_token: {TOKEN}")]
)
def test_a_token_that_others_may_read_is_refused(name: str, text: str, mode: int, tmp_path: Path) -> None:
    path = written(tmp_path, text, name, mode)
    shown = complaint(path)
    assert "Others may read" in shown
    hint = shown.partition("Do: ")[2]
    subprocess.run(hint, shell=True, check=True)
    assert values(path) == {"api-token": TOKEN}, "the command that it names is the remedy"


@posix
def test_a_file_without_secrets_may_be_open(tmp_path: Path) -> None:
    assert values(written(tmp_path, "port = 1", mode=0o644)) == {"port": "1"}


def test_what_was_read_may_be_logged(tmp_path: Path) -> None:
    assert TOKEN not in repr(load(written(tmp_path, f'api-token = "{TOKEN}"'), tmp_path, KEYS))


@pytest.mark.parametrize("key", ["api-token", "token", "hf-token", "redis-password", "join-secret", "openai-api-key"])
def test_what_ends_like_a_secret_is_one(key: str) -> None:
    assert config_file.is_secret(key)


@pytest.mark.parametrize("key", ["port", "context", "tokenizer", "token-file", "model"])
def test_what_does_not_is_none(key: str) -> None:
    assert not config_file.is_secret(key)


@pytest.mark.parametrize(("name", "loaded"), [("", []), ("c.toml", ["tomllib"]), ("c.yaml", ["yaml"])])
def test_only_the_parser_that_is_needed_is_loaded(name: str, loaded: list[str], tmp_path: Path) -> None:
    path = repr(str(written(tmp_path, "", name))) if name else None
    program = (
        "import sys; from pathlib import Path; from commands.config_file import load\n"
        f"load({f'Path({path})' if path else None}, Path({str(tmp_path / 'none')!r}), ())\n"
        "print([m for m in ('tomllib', 'yaml') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == str(loaded)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("port:=-\n\t \"'[]{}#&*!|>%@`~\\U0x1_.,?<é\ufeff\0"), max_size=60),
    st.sampled_from(["toml", "yaml"]),
)
@example("port: !!int ''\n", "yaml")
@example("port: !!bool x\n", "yaml")
@example("? [a]\n: b\n", "yaml")
@example("&a port: *a\n", "yaml")
@example("<<: a\n=: b\n", "yaml")
def test_no_text_is_a_traceback(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / f"fuzz.{kind}"
    path.write_bytes(text.encode())
    path.chmod(0o600)
    try:
        read = load(path, tmp_path, KEYS).values
    except ConfigFileError:
        return
    assert all(key in KEYS and isinstance(value, str) and value.strip() for key, value in read.items())
