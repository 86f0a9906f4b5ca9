"""What the papers tell a person to type or to open is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from build_scripts import signing
from commands.app import app
from tests.build_scripts.test_workflows import MODULE_CALL, check_options
from vramancer_cli import __version__

ROOT = Path(__file__).parents[2]
PAPERS = ("CONTRIBUTING.md", "CHANGELOG.md", "docs/install.md")
CODE = re.compile(r"```[^\n]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def code_in(paper: str) -> str:
    """All that is set as code, one piece a line."""
    return "\n".join(block or inline for block, inline in CODE.findall((ROOT / paper).read_text("utf-8")))


@pytest.mark.parametrize("paper", PAPERS)
def test_targets_modules_verbs_and_links_exist(paper: str) -> None:
    code, text = code_in(paper), (ROOT / paper).read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(re.findall(r"^make ([a-z-]+)", code, re.M)) <= set(targets)
    for module, options in MODULE_CALL.findall(code):
        if module.startswith("build_scripts"):
            check_options(module, options.split())
    assert set(re.findall(r"^vramancer ([a-z]+)", code, re.M)) <= set(typer.main.get_group(app).commands)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / paper).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("paper", ["CONTRIBUTING.md", "docs/install.md"])
def test_named_files_exist(paper: str) -> None:
    roots = ("build_scripts/", "commands/", "docs/", "tests/", "transport/", "vramancer_cli/", ".ci/", ".github/")
    named = [line for line in code_in(paper).splitlines() if line.startswith(roots) and " " not in line]
    assert named
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_installing_names_the_signing_variables_and_no_other_torch() -> None:
    text = (ROOT / "docs" / "install.md").read_text("utf-8")
    for name in (
        signing.CODESIGN_IDENTITY,
        signing.NOTARY_PROFILE,
        signing.SIGN_CERTIFICATE,
        signing.SIGN_TIMESTAMP_URL,
    ):
        assert f"`{name}`" in text
    pinned = re.search(r'"(torch==[^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert pinned is not None
    assert set(re.findall(r"torch==[\w.+]+", text)) == {pinned[1]}


def test_the_changelog_has_this_version_below_what_is_not_released() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] == "Unreleased"
    assert headings[1] == __version__
