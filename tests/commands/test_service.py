from __future__ import annotations

import json
import os
import plistlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import service
from tests.helpers.user_manager import UserManager, user_manager
from tests.helpers.verbs import InProcess, Ran
from vramancer_cli.runtime import enrolment, state_folder
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.run_file import write as write_run
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import ServiceState
from vramancer_cli.service.systems import system_here

VERB = [sys.executable, "-m", "vramancer_cli", "service"]
OWN = [sys.executable, "-m", "vramancer_cli", "start"]


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """Where no variable is set but a home of its own, and no service system answers."""
    run = InProcess(tmp_path, monkeypatch, capsys)
    for name in [name for name in os.environ if name.startswith("VRM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "cfg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setattr("commands.options.DEFAULT_STATE_FOLDER", tmp_path / "app")
    return run


def planned(ran: Ran) -> list[str]:
    """The command in the property list that --dry-run --system launchd shows: the one that is easy to read back."""
    assert ran.code == 0, ran.err
    text = ran.out.partition("\n")[2].partition("# then")[0]
    return plistlib.loads(text.encode())["ProgramArguments"]


def dry(*flags: str) -> list[str]:
    return ["service", "install", *flags, "--dry-run", "--system", "launchd"]


def test_alone_it_shows_its_help(verb: InProcess) -> None:
    ran = verb("service")
    assert ran.code == 0
    for word in ("install", "status", "remove", "Examples"):
        assert word in ran.out


@pytest.mark.parametrize("part", ["install", "status", "remove"])
def test_the_help_of_every_part_has_examples_and_fits_80_columns(part: str, verb: InProcess) -> None:
    ran = verb("service", part, "--help")
    assert ran.code == 0
    assert "   vramancer service install" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_it_runs_the_program_again_with_the_flags_given(verb: InProcess) -> None:
    assert planned(verb(*dry())) == OWN
    flags = ["--master", "--port", "8000", "--memory=6GiB", "--name", "my $x", "--detach", "--memory", "4GiB"]
    given = ["--port", "8000", "--name", "my $x", "--memory", "6GiB", "--memory", "4GiB"]
    assert planned(verb(*dry(*flags))) == [*OWN, "--master", *given]


def test_the_one_file_program_is_run_by_its_own_path(verb: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "own_command", lambda words: ["/opt/vramancer", *words])  # as test_background has it
    assert planned(verb(*dry("--master"))) == ["/opt/vramancer", "start", "--master"]


def test_paths_are_whole_wherever_the_service_runs(
    verb: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "my.toml").write_text("port = 7000\n")
    monkeypatch.chdir(tmp_path)
    flags = ["--master", "--model", "models/tiny", "--state-dir", "here", "--cache-dir", "~/c", "--config", "my.toml"]
    words = planned(verb(*dry(*flags)))
    given = dict(zip(words[5::2], words[6::2], strict=True))
    assert given == {
        "--model": f"{tmp_path}/models/tiny",
        "--state-dir": f"{tmp_path}/here",
        "--cache-dir": f"{tmp_path}/c",
        "--config": f"{tmp_path}/my.toml",
    }
    assert planned(verb(*dry("--master", "--model", "org/name")))[-1] == "org/name", "a name of the hub"


def test_variables_of_this_shell_do_not_leak(verb: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRM_PORT", "7777")
    monkeypatch.setenv("VRM_API_TOKEN", "a-secret")
    ran = verb(*dry("--master"))
    assert planned(ran) == [*OWN, "--master"]
    assert "7777" not in ran.out
    assert ran.error_lines == [
        "Set here, but not for the service: VRM_API_TOKEN, VRM_PORT. It gets only flags and the config file."
    ]
    ran = verb(*dry("--master", "--host", "0.0.0.0"))
    assert ran.code == 2, "the token of this shell will not be there when the service starts"
    assert "VRM_API_TOKEN" in ran.err


def test_a_token_is_refused_and_its_place_named(verb: InProcess, tmp_path: Path) -> None:
    ran = verb(*dry("--master", "--api-token", "a-secret"))
    assert ran.code == 2
    assert "a-secret" not in ran.out + ran.err
    assert f"{tmp_path}/app/config.toml" in ran.err
    assert "chmod 600" in ran.err


def test_the_config_file_counts(verb: InProcess, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.toml").write_text('api-token = "a-secret"\nhost = "0.0.0.0"\n')
    (tmp_path / "app" / "config.toml").chmod(0o600)
    ran = verb(*dry("--master"))
    assert planned(ran) == [*OWN, "--master"]
    assert "a-secret" not in ran.out + ran.err
    (tmp_path / "app" / "config.toml").write_text("port = 70000\n")
    ran = verb(*dry("--master"))
    assert ran.code == 2
    assert "70000" in ran.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--maste"], "No such option: --maste"),
        (["--memory", "six"], "'six' is not a size"),
        (["tower"], "unexpected extra argument"),
        (["--port"], "--port"),
        (["--master", "--model", "./nothing-here"], "There is no folder './nothing-here'"),
        (["--master", "--name", "a\nb"], "printable"),
    ],
)
def test_a_typo_is_refused_when_it_is_installed(flags: list[str], words: str, verb: InProcess) -> None:
    ran = verb("service", "install", *flags)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.error_lines) == 1
    assert words in ran.err


def test_another_system_can_only_be_looked_at(verb: InProcess) -> None:
    ran = verb("service", "install", "--master", "--system", "windows")
    assert ran.code == 2
    assert "--dry-run" in ran.err


def test_a_dry_run_shows_file_and_commands_and_changes_nothing(verb: InProcess, tmp_path: Path) -> None:
    ran = verb("service", "install", "--master", "--dry-run", "--system", "systemd")
    unit = tmp_path / "cfg" / "systemd" / "user" / "vramancer.service"
    assert ran.out.startswith(f"# {unit}\n# Written by")
    assert ran.out.endswith("systemctl --user --no-ask-password restart vramancer.service\n")
    assert list(tmp_path.iterdir()) == []
    assert "schtasks /Create" in verb("service", "install", "--dry-run", "--system", "windows").out


def test_a_machine_of_no_cluster_is_told_what_to_do(verb: InProcess, tmp_path: Path) -> None:
    ran = verb("service", "install", "--state-dir", str(tmp_path / "app"))
    assert ran.code == 2
    assert "--master" in ran.err
    assert "vramancer join" in ran.err


def test_a_worker_is_not_made_a_master(verb: InProcess, tmp_path: Path) -> None:
    credentials, _ = enrolment.found_cluster("tower", StateFolder(tmp_path / "head"), time.time())
    StateFolder(tmp_path / "worker").save_credentials(credentials)
    assert tuple(sorted(service.IDENTITY_FILES)) == (state_folder.AUTHORITY_FILE, state_folder.CREDENTIALS_FILE)
    for flags in (["--master"], ["--model", "org/name"]):
        ran = verb("service", "install", *flags, "--state-dir", str(tmp_path / "worker"))
        assert ran.code == 2
        assert "worker of a cluster" in ran.err


def test_beside_a_running_node_it_would_only_fail(
    verb: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "app", RunRecord.of_this_process("http://127.0.0.1:7000", 7001, "head"))
    stopped = ServiceState(False, False, False, "inactive")
    monkeypatch.setattr(installation, "state", lambda _system: stopped)
    ran = verb("service", "install", "--master", "--state-dir", str(tmp_path / "app"))
    assert ran.code == 1
    assert "vramancer stop" in ran.err


@pytest.mark.skipif(system_here() != "systemd", reason="needs Linux")
@pytest.mark.parametrize("words", [["install", "--master"], ["status"], ["status", "--json"]])
def test_without_a_service_system(words: list[str], verb: InProcess, tmp_path: Path) -> None:
    more = ["--state-dir", str(tmp_path / "app")] if "install" in words else []
    ran = verb("service", *words, *more)
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.error_lines) == 1
    assert ran.err.startswith("error: systemd runs no services for this user: ")
    assert "container" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(system_here() != "systemd", reason="needs Linux")
def test_nothing_to_remove(verb: InProcess) -> None:
    ran = verb("service", "remove")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "No service is installed here: nothing to remove.\n"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[UserManager]:
    with user_manager(tmp_path) as found:
        yield found


def test_a_real_node_under_a_real_systemd(manager: UserManager) -> None:
    """Installed, running, killed and started again, replaced, removed: and nothing is left but who it is."""
    own = [*VERB, "install", "--master", "--port", "0", "--node-port", "0", "--name", "my $HOME %h"]
    ran = manager.run(*own, VRM_PORT="1")
    assert ran.returncode == 0, ran.stderr
    assert f"Installed and started: {manager.unit}" in ran.stdout
    assert f"runs  {shlex.join([*OWN, '--master'])} " in ran.stdout
    assert "loginctl enable-linger" in ran.stdout
    assert "ExecStart=" in manager.unit.read_text()

    application = manager.home / ".config" / "vramancer"
    manager.wait_for('"role": "head"', "cat", str(application / "run.json"))
    state = json.loads(manager.run(*VERB, "status", "--json").stdout)
    assert {name: state[name] for name in ("system", "installed", "enabled", "running")} == {
        "system": "systemd", "installed": True, "enabled": True, "running": True,
    }  # fmt: skip
    assert json.loads((application / "run.json").read_text())["pid"] == state["pid"]
    board = json.loads(manager.run(*VERB[:-1], "status", "--json").stdout)
    assert "my $HOME %h" in json.dumps(board)

    ended = manager.run(*VERB[:-1], "stop")
    assert ended.returncode == 0, ended.stderr
    manager.wait_for("ActiveState=inactive", "systemctl", "--user", "show", "vramancer.service")
    looked = manager.run(*VERB, "status")
    assert (looked.returncode, looked.stdout.splitlines()[0]) == (3, "Not running: systemd says inactive (dead)")

    again = manager.run(*VERB, "install", "--port", "0", "--node-port", "0")
    assert again.returncode == 0, again.stderr
    assert "--master" not in manager.unit.read_text(), "replaced"
    manager.wait_for('"role": "head"', "cat", str(application / "run.json"))

    removed = manager.run(*VERB, "remove")
    assert (removed.returncode, removed.stdout) == (0, f"Stopped and removed: {manager.unit}\n")
    assert not (application / "run.json").exists(), "it ended in order"
    kept = {"authority.pem", "credentials.json", "lock", "security.jsonl"}
    assert {path.name for path in application.iterdir()} == kept
    assert list(manager.unit.parent.iterdir()) == []
    assert manager.run(*VERB, "remove").returncode == 0
    assert manager.run(*VERB, "status").returncode == 3
