from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from commands import options
from commands.app import app
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
    assert result.exit_code == 0, result.output
    return told[0]


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    assert read().port == 5000
    assert read(VRM_PORT="7000").port == 7000
    assert read("--port", "8000", VRM_PORT="7000").port == 8000


def test_it_is_known_whether_a_person_chose_a_port() -> None:
    assert not read().port_given
    assert read("--port", "5000").port_given
    assert read(VRM_PORT="5000").port_given
    assert not read("--port", "5000").node_port_given
    assert not read(VRM_NODE_PORT="").node_port_given


def test_every_option_reaches_the_settings(tmp_path: Path) -> None:
    settings = read(
        "--host", "0.0.0.0", "--node-port", "0", "--name", "attic", "--device", "CUDA:1", "--memory", "6GiB",
        "--dtype", "float16", "--context", "4096", "--state-dir", str(tmp_path),
        VRM_API_TOKEN="secret", VRM_LOG_JSON="1",
    )  # fmt: skip
    assert settings == NodeSettings(
        role="worker", model=None, host="0.0.0.0", port=5000, port_given=False, node_port=0, node_port_given=True,
        name="attic", device="cuda:1", memory_bytes=6 * 2**30, dtype="float16", context_tokens=4096,
        state_folder=tmp_path, api_token="secret", log_json=True, head=None,
    )  # fmt: skip


def test_the_state_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("--state-dir", "here").state_folder == tmp_path / "here"
    assert read("--state-dir", "~/x").state_folder == Path.home() / "x"


def test_variables_are_few_and_named_after_their_options() -> None:
    seen: dict[str, str] = {}
    for command in commands().values():
        for parameter in command.params:
            if parameter.envvar:
                assert parameter.envvar == "VRM_" + parameter.opts[0].removeprefix("--").replace("-", "_").upper()
                seen[parameter.envvar] = parameter.opts[0]
    assert set(seen) == {
        "VRM_MODEL", "VRM_HOST", "VRM_PORT", "VRM_NODE_PORT", "VRM_NAME", "VRM_DEVICE", "VRM_MEMORY", "VRM_DTYPE",
        "VRM_CONTEXT", "VRM_STATE_DIR", "VRM_CODE", "VRM_URL", "VRM_API_TOKEN", "VRM_LOG_JSON",
    }  # fmt: skip
    assert len(seen) <= 20


def test_nothing_else_reads_the_environment() -> None:
    root = Path(__file__).parents[2]
    readers = [
        path.relative_to(root).as_posix()
        for room in ("commands", "vramancer_cli", "transport")
        for path in (root / room).rglob("*.py")
        if any(word in path.read_text("utf-8") for word in ("os.environ", "getenv", "import environ"))
        and path.name != "options.py"
    ]
    assert readers == []


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
    assert join - start == {"head", "--auto-discover", "--code"}
