"""Rules for every test: under VRM_TEST_STRICT=1 a skipped test has failed, unless its reason is listed here.

And nothing is ever unpickled, see helpers/unpickling.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

import vramancer_cli.engine  # noqa: F401  # before any test loads torch: it says how threads wait
from tests.helpers import unpickling
from tests.helpers.unpickling import pytest_runtest_call as pytest_runtest_call
from tests.helpers.unpickling import pytest_runtest_teardown as pytest_runtest_teardown
from tests.helpers.unpickling import pytest_sessionfinish as pytest_sessionfinish

unpickling.watch()

# A shell starts what it puts into the background with SIGINT ignored, and children inherit that: then no Ctrl-C test
# can pass. A handler, unlike "ignore", is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, which others may use too.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

ALLOWED_SKIPS = (
    "needs a CUDA device", "needs Windows", "needs macOS", "needs Linux", "needs a systemd user manager",
    "needs network namespaces",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `faults` is for `make faults`: each of them takes its seconds."""
    if os.environ.get("VRM_FAULTS") == "1":
        return
    later = [item for item in items if item.get_closest_marker("faults")]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("VRM_TEST_STRICT") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped under VRM_TEST_STRICT=1: {reason}"
    return report
