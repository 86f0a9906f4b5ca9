"""Fails the test session on any unpickling, in the tests' process and in every Python process that they start.

Hooks for conftest.py; what watches is `watched/sitecustomize.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

WATCHED: Final = Path(__file__).parent / "watched"
LOG_VARIABLE: Final = "UNPICKLING_LOG"


def watch() -> None:
    """Once, before anything else of ours is imported: this process, and what will inherit its environment."""
    descriptor, log = tempfile.mkstemp(prefix="unpickling-", suffix=".log")
    os.close(descriptor)
    os.environ[LOG_VARIABLE] = log
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(WATCHED), before] if before else [str(WATCHED)])
    import tests.helpers.watched.sitecustomize  # noqa: F401  # watches from its import on


def violations() -> str:
    """What was written down since the last call."""
    log = Path(os.environ[LOG_VARIABLE])
    found = log.read_text()
    if found:
        log.write_text("")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    _fail_on_violations()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    _fail_on_violations()
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """For processes that outlived the last test."""
    found = violations()
    Path(os.environ[LOG_VARIABLE]).unlink(missing_ok=True)
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        raise pytest.UsageError(f"something was unpickled after the last test:\n{found}")


def _fail_on_violations() -> None:
    if found := violations():
        pytest.fail(f"something was unpickled:\n{found}", pytrace=False)
