from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from commands import options
from commands.app import app
from vramancer_cli.errors import UsageError
from vramancer_cli.settings import NodeSettings


def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def read(*arguments: str, **environment: str) -> NodeSettings:
    """What a verb with the node's options is given for this command line and environment."""
    told: list[NodeSettings] = []
    probe = typer.Typer()

    @probe.command()
    @options.spread
    def verb(invocation: typer.Context, *, flags: options.NodeFlags) -> None:  # pyright: ignore[reportUnusedFunction]
        told.append(options.node_settings(invocation, flags, role="worker"))

    result = CliRunner(env=environment).invoke(probe, list(arguments))
    if isinstance(result.exception, UsageError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return told[0]


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    assert read().port == 5000
    assert read(VRM_PORT="7000").port == 7000
    assert read("--port", "8000", VRM_PORT="7000").port == 8000


def config_file(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    return str(path)


def test_a_config_file_wins_over_the_default_and_nothing_else(tmp_path: Path) -> None:
    file = config_file(tmp_path, "port = 6000\n")
    assert read(VRM_CONFIG=file).port == 6000
    assert read("--config", file).port == 6000
    assert read(VRM_CONFIG=file).node_port == 5001
    assert read(VRM_CONFIG=file, VRM_PORT="7000").port == 7000
    assert read("--port", "8000", VRM_CONFIG=file, VRM_PORT="7000").port == 8000


def test_the_file_of_the_configuration_folder_counts_and_another_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "DEFAULT_STATE_FOLDER", tmp_path)
    config_file(tmp_path, "port = 6000\n")
    (tmp_path / "other").mkdir()
    other = config_file(tmp_path / "other", "node-port = 6001\n")
    assert (read().port, read().node_port) == (6000, 5001)
    assert (read(VRM_CONFIG=other).port, read(VRM_CONFIG=other).node_port) == (5000, 6001)
    assert read("--config", other, VRM_CONFIG=str(tmp_path / "none.toml")).node_port == 6001


def test_a_value_in_the_file_was_chosen_by_a_person(tmp_path: Path) -> None:
    settings = read(VRM_CONFIG=config_file(tmp_path, "port = 5000\n"))
    assert settings.port_given
    assert not settings.node_port_given


def test_a_file_says_what_flags_say(tmp_path: Path) -> None:
    said = {
        "host": "127.0.0.2", "port": "0", "node-port": "0", "name": "attic", "device": "CUDA:1", "memory": "6GiB",
        "dtype": "float16", "context": "4096", "state-dir": str(tmp_path), "api-token": "secret",
    }  # fmt: skip
    flags = read(*(f"--{key}={value}" for key, value in said.items()), "--log-json")
    assert flags.memory_bytes == (6 * 2**30,)
    lines = [f"{key.replace('-', '_')} = '{value}'" for key, value in said.items()]
    assert read(VRM_CONFIG=config_file(tmp_path, "\n".join([*lines, "log-json = true"]))) == flags
    assert flags != read("--state-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("port = 70000", "'port' from {}: '70000' is not a number from 0 to 65535."),
        ("node_port = true", "'node-port' from {}: 'true' is not a number"),
        ("memory = 'six'", "'memory' from {}: 'six' is not a size."),
        ("dtype = 'int3'", "'dtype' from {}:"),
        ("log-json = 'maybe'", "'log-json' from {}:"),
    ],
)
def test_a_wrong_value_in_a_file_names_the_file_and_the_key(line: str, words: str, tmp_path: Path) -> None:
    from commands.app import run

    file = config_file(tmp_path, line)
    with pytest.raises(UsageError) as caught:
        run(["start", "--config", file])
    assert f"Invalid value for {words.format(file)}" in str(caught.value)
    assert "--" not in str(caught.value).replace(file, "")


def test_a_wrong_value_that_is_not_used_stops_nobody(tmp_path: Path) -> None:
    file = config_file(tmp_path, "port = 70000\n")
    assert read("--port", "1", VRM_CONFIG=file).port == 1


def test_a_setting_of_another_verb_may_stand_there(tmp_path: Path) -> None:
    """`url` is for the verbs that ask; and the model to serve is not the one to ask."""
    from commands.app import run

    file = config_file(tmp_path, "url = 'http://127.0.0.1:1'\nmodel = 'no-such-model'\n")
    with pytest.raises(UsageError, match="belongs to no cluster"):
        run(["start", "--config", file, "--state-dir", str(tmp_path)])
    chat: Any = commands()["chat"]
    context = chat.make_context("chat", ["--config", file], parent=typer.Context(typer.main.get_command(app)))
    assert context.params["url"] == "http://127.0.0.1:1"
    assert context.params["model"] is None


def test_completing_words_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRM_CONFIG", config_file(tmp_path, "port = 6000\n"))
    start: Any = commands()["start"]
    parent = typer.Context(typer.main.get_command(app))
    assert start.make_context("start", [], parent=parent).params["port"] == 6000
    assert start.make_context("start", [], parent=parent, resilient_parsing=True).params["port"] == 5000


def test_it_is_known_whether_a_person_chose_a_port() -> None:
    assert not read().port_given
    assert read("--port", "5000").port_given
    assert read(VRM_PORT="5000").port_given
    assert not read("--port", "5000").node_port_given
    assert not read(VRM_NODE_PORT="").node_port_given


def test_every_option_reaches_the_settings(tmp_path: Path) -> None:
    settings = read(
        "--host", "0.0.0.0", "--node-port", "0", "--name", "attic", "--device", "CUDA:1", "--memory", "6GiB",
        "--dtype", "float16", "--quantize", "int4", "--context", "4096", "--state-dir", str(tmp_path),
        "--kv-cache", "int8", "--rate-limit", "30", "--cors-origin", "https://a.example", "--allow-lan-http",
        "--no-prefix-cache", "--draft", "off", "--prefer", "room", "--activations", "int4", VRM_API_TOKEN="secret",
        VRM_LOG_JSON="1",
    )  # fmt: skip
    assert settings == NodeSettings(
        role="worker", model=None, host="0.0.0.0", port=5000, port_given=False, node_port=0, node_port_given=True,
        name="attic", devices=("cuda:1",), memory_bytes=(6 * 2**30,), dtype="float16", context_tokens=4096,
        state_folder=tmp_path, api_token="secret", log_json=True, head=None,
        rate_limit=30, cors_origin="https://a.example", allow_lan_http=True, production=False, quantize="int4",
        kv_cache="int8", activations="int4", prefix_cache=False, draft=0, prefer="room",
    )  # fmt: skip


def test_guessing_ahead_is_left_to_the_program_unless_a_person_says_how_many() -> None:
    assert read().draft is None and read("--draft", "auto").draft is None
    assert (read("--draft", "5").draft, read(VRM_DRAFT="OFF").draft) == (5, 0)


def test_the_apis_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    long = "x" * 32
    settings = read("--state-dir", str(tmp_path), VRM_PRODUCTION="1", VRM_API_TOKEN=long, VRM_RATE_LIMIT="30")
    assert (settings.production, settings.rate_limit, settings.allow_lan_http) == (True, 30, False)
    told = read("--state-dir", str(tmp_path), VRM_ALLOW_LAN_HTTP="1", VRM_CORS_ORIGIN="https://a.example")
    assert (told.allow_lan_http, told.cors_origin) == (True, "https://a.example")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"VRM_HOST": "0.0.0.0"}, "vramancer keys add"),
        ({"VRM_HOST": "0.0.0.0", "VRM_API_TOKEN": "x"}, "--allow-lan-http"),
        ({"VRM_PRODUCTION": "1"}, "VRM_PRODUCTION=1"),
        ({"VRM_PRODUCTION": "1", "VRM_API_TOKEN": "x" * 32, "VRM_ALLOW_LAN_HTTP": "1"}, "--allow-lan-http"),
        ({"VRM_CORS_ORIGIN": "*"}, "every web page"),
    ],
)
def test_an_api_that_would_be_too_open_is_refused_at_once(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read("--state-dir", str(tmp_path), **variables)
    assert named in f"{caught.value} {caught.value.hint}"


def test_the_state_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("--state-dir", "here").state_folder == tmp_path / "here"
    assert read("--state-dir", "~/x").state_folder == Path.home() / "x"


def test_variables_are_few_and_named_after_their_options() -> None:
    seen: dict[str, str] = {}
    for command in commands().values():
        for parameter in command.params:
            if parameter.envvar:
                named = "VRM_" + parameter.opts[0].removeprefix("--").replace("-", "_").upper()
                assert parameter.envvar == {"VRM_TOKEN": "VRM_JOIN_TOKEN"}.get(named, named)
                seen[parameter.envvar] = parameter.opts[0]
    assert set(seen) == {
        "VRM_MODEL", "VRM_HOST", "VRM_PORT", "VRM_NODE_PORT", "VRM_NAME", "VRM_DEVICE", "VRM_MEMORY", "VRM_DTYPE",
        "VRM_CONTEXT", "VRM_STATE_DIR", "VRM_CODE", "VRM_URL", "VRM_API_TOKEN", "VRM_LOG_JSON",
        "VRM_CONFIG", "VRM_RATE_LIMIT", "VRM_CORS_ORIGIN", "VRM_ALLOW_LAN_HTTP", "VRM_PRODUCTION",
        "VRM_QUANTIZE", "VRM_JOIN_TOKEN", "VRM_TOKEN_FILE", "VRM_CACHE_DIR", "VRM_RUNTIME_URL",
        "VRM_NO_PREFIX_CACHE", "VRM_DRAFT", "VRM_KV_CACHE", "VRM_PREFER", "VRM_ACTIVATIONS",
    }  # fmt: skip
    assert len(seen) <= 30


def test_nothing_else_reads_the_environment() -> None:
    root = Path(__file__).parents[2]
    readers = [
        path.relative_to(root).as_posix()
        for room in ("commands", "vramancer_cli", "transport")
        for path in (root / room).rglob("*.py")
        if any(word in path.read_text("utf-8") for word in ("os.environ", "getenv", "import environ"))
        and path.name != "options.py"
    ]
    # The first says something to torch's OpenMP, the second passes the environment on: no setting of ours is read.
    assert sorted(readers) == ["vramancer_cli/engine/__init__.py", "vramancer_cli/launcher/handover.py"]


def test_a_wrong_value_names_its_option() -> None:
    probe = typer.Typer()

    @probe.command()
    @options.spread
    def verb(*, flags: options.NodeFlags) -> None: ...  # pyright: ignore[reportUnusedFunction]

    with pytest.raises(typer.BadParameter, match=r"'70000' is not a number from 0 to 65535") as caught:
        typer.main.get_command(probe).main(["--port", "70000"], standalone_mode=False)
    assert "--port" in caught.value.format_message()


def test_join_has_every_option_of_start_but_master_and_model() -> None:
    start, join = ({p.opts[0] for p in commands()[verb].params} for verb in ("start", "join"))
    assert start - join == {"--master", "--model"}
    assert join - start == {"head", "--auto-discover", "--code", "--token", "--token-file"}


def test_several_devices_each_with_its_memory() -> None:
    both = ["--device", "cuda:0", "--device", "cpu", "--memory", "20GiB", "--memory", "6GiB"]
    settings = read(*both)
    assert settings.devices == ("cuda:0", "cpu")
    assert settings.memory_bytes == (20 * 2**30, 6 * 2**30)
    assert read(VRM_DEVICE="cuda:0,cpu", VRM_MEMORY="20GiB,6GiB").memory_bytes == settings.memory_bytes
    assert read().devices == ("auto",)
    assert read().memory_bytes == ()
