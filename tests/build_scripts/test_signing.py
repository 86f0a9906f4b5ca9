"""Signing runs the real steps with recording tools in place of Apple's and Microsoft's, which are not here."""

from __future__ import annotations

import json
import plistlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build_scripts import signing
from build_scripts.signing import SigningError

IDENTITY = "Developer ID Application: Somebody (TEAM123456)"
THUMBPRINT = "0123456789abcdef0123456789ABCDEF01234567"
TIME_SERVER = "http://time.example/rfc3161"
ACCEPTED = "Processing complete\n  id: 1\n  status: Accepted"
RECORDER = """
import json, os, shutil, sys
name, record, told, code = sys.argv[1:5]
arguments = sys.argv[5:]
with open(record, "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
if name == "ditto":
    shutil.copy(arguments[-2], arguments[-1])
print(told)
sys.exit(int(code))
"""


class Tools:
    """Stand-ins on a PATH of their own: each notes how it was called, says its words, and ends with its code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.jsonl"
        (folder / "recorder.py").write_text(RECORDER)

    def add(self, name: str, told: str = "", code: int = 0, program: str = "") -> None:
        recorder = [sys.executable, str(self.folder / "recorder.py"), name, str(self.record), told, str(code)]
        script = self.folder / name
        script.write_text("#!/bin/sh\n" + (program or f'exec {shlex.join(recorder)} "$@"\n'))
        script.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self.folder), **variables}


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    folder = tmp_path / "tools"
    folder.mkdir()
    return Tools(folder)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "vramancer one"
    path.write_bytes(b"program")
    return path


def test_without_variables_nothing_runs_and_it_says_so(
    tools: Tools, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("signtool", "xcrun", "ditto"):
        tools.add(name)
    environment = tools.environment()
    assert signing.sign_windows(program, environment) is False
    assert signing.notarise(program, environment) is False
    assert signing.pyinstaller_identity(environment) is None
    assert signing.entitlements(environment) is None
    assert tools.calls == []
    said = capsys.readouterr().out
    for name in ("VRM_SIGN_CERTIFICATE", "VRM_NOTARY_PROFILE", "VRM_CODESIGN_IDENTITY"):
        assert f"{name} is not set" in said


def test_an_empty_secret_is_no_secret(tools: Tools, program: Path) -> None:
    """A workflow passes secrets that a fork does not have as empty text."""
    empty = tools.environment(
        VRM_SIGN_CERTIFICATE="", VRM_SIGN_TIMESTAMP_URL="", VRM_NOTARY_PROFILE=" ", VRM_CODESIGN_IDENTITY=""
    )
    assert signing.sign_windows(program, empty) is False
    assert signing.notarise(program, empty) is False
    assert signing.pyinstaller_identity(empty) is None


def test_pyinstaller_gets_identity_and_entitlements_together() -> None:
    environment = {"VRM_CODESIGN_IDENTITY": f" {IDENTITY}\n"}
    assert signing.pyinstaller_identity(environment) == IDENTITY
    path = signing.entitlements(environment)
    assert path is not None
    assert plistlib.loads(Path(path).read_bytes()) == {"com.apple.security.cs.allow-jit": True}


def test_windows_signs_with_a_time_stamp_and_verifies(tools: Tools, program: Path) -> None:
    tools.add("signtool")
    spaced = " ".join(THUMBPRINT[at : at + 2] for at in range(0, 40, 2))  # as Windows shows it
    environment = tools.environment(VRM_SIGN_CERTIFICATE=spaced, VRM_SIGN_TIMESTAMP_URL=TIME_SERVER)
    assert signing.sign_windows(program, environment) is True
    digest = ["/fd", "SHA256", "/tr", TIME_SERVER, "/td", "SHA256"]
    assert tools.calls == [
        ["signtool", "sign", "/sha1", THUMBPRINT, *digest, str(program)],
        ["signtool", "verify", "/pa", str(program)],
    ]


@pytest.mark.parametrize(
    ("thumbprint", "time_server", "word"),
    [
        ("not hex", TIME_SERVER, "VRM_SIGN_CERTIFICATE"),
        (THUMBPRINT + "00", TIME_SERVER, "VRM_SIGN_CERTIFICATE"),
        (THUMBPRINT, "", "VRM_SIGN_TIMESTAMP_URL"),
        (THUMBPRINT, "/debug", "VRM_SIGN_TIMESTAMP_URL"),
    ],
)
def test_windows_refuses_half_a_setting(
    thumbprint: str, time_server: str, word: str, tools: Tools, program: Path
) -> None:
    tools.add("signtool")
    environment = tools.environment(VRM_SIGN_CERTIFICATE=thumbprint, VRM_SIGN_TIMESTAMP_URL=time_server)
    with pytest.raises(SigningError, match=word):
        signing.sign_windows(program, environment)
    assert tools.calls == []


def test_notarising_sends_a_zip_and_waits(tools: Tools, program: Path) -> None:
    tools.add("ditto")
    tools.add("xcrun", told=ACCEPTED)
    environment = tools.environment(VRM_CODESIGN_IDENTITY=IDENTITY, VRM_NOTARY_PROFILE="mine")
    assert signing.notarise(program, environment) is True
    packing, submitting = tools.calls
    parcel = packing[-1]
    assert packing == ["ditto", "-c", "-k", "--keepParent", str(program), parcel]
    assert submitting == ["xcrun", "notarytool", "submit", parcel, "--keychain-profile", "mine", "--wait"]
    assert parcel.endswith("vramancer one.zip")
    assert not Path(parcel).exists(), "the zip was only for the way"


@pytest.mark.parametrize("told", ["  status: Invalid", "  status: In Progress", ""])
def test_a_refused_file_is_an_error_although_the_tool_ended_well(told: str, tools: Tools, program: Path) -> None:
    tools.add("ditto")
    tools.add("xcrun", told=told)
    environment = tools.environment(VRM_CODESIGN_IDENTITY=IDENTITY, VRM_NOTARY_PROFILE="mine")
    with pytest.raises(SigningError, match="did not accept"):
        signing.notarise(program, environment)


def test_an_unsigned_file_is_not_sent(tools: Tools, program: Path) -> None:
    tools.add("ditto")
    tools.add("xcrun", told=ACCEPTED)
    with pytest.raises(SigningError, match="VRM_CODESIGN_IDENTITY"):
        signing.notarise(program, tools.environment(VRM_NOTARY_PROFILE="mine"))
    assert tools.calls == []


Step = Callable[[Path, dict[str, str]], bool]
SETTINGS = {
    "VRM_SIGN_CERTIFICATE": THUMBPRINT,
    "VRM_SIGN_TIMESTAMP_URL": TIME_SERVER,
    "VRM_CODESIGN_IDENTITY": IDENTITY,
    "VRM_NOTARY_PROFILE": "mine",
}
STEPS = [(signing.sign_windows, "signtool"), (signing.notarise, "xcrun")]


@pytest.mark.parametrize(("step", "tool"), STEPS)
def test_a_tool_that_fails_or_is_missing_is_an_error(step: Step, tool: str, tools: Tools, program: Path) -> None:
    tools.add("ditto")
    with pytest.raises(SigningError, match=f"{tool} is not installed"):
        step(program, tools.environment(**SETTINGS))
    tools.add(tool, told="No certificates were found", code=1)
    with pytest.raises(SigningError, match="exit code 1:\nNo certificates were found"):
        step(program, tools.environment(**SETTINGS))


def test_a_tool_that_never_ends_is_given_up(tools: Tools, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.add("signtool", program="exec /bin/sleep 60\n")
    monkeypatch.setattr(signing, "SIGN_DEADLINE_S", 0.2)
    with pytest.raises(SigningError, match="did not end within"):
        signing.sign_windows(program, tools.environment(**SETTINGS))
