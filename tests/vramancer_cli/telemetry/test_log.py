"""Log lines: one each, on stderr, readable or JSON, with nothing secret in them and nothing able to break out."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from vramancer_cli.telemetry import log


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root, house = logging.getLogger(), logging.getLogger(log.HOUSE)
    handlers, levels, formatwarning = root.handlers[:], (root.level, house.level), warnings.formatwarning
    yield
    logging.captureWarnings(False)
    root.handlers, warnings.formatwarning = handlers, formatwarning
    root.setLevel(levels[0])
    house.setLevel(levels[1])


Captured = pytest.CaptureFixture[str]


def one_line(capsys: Captured) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err[:-1]


def test_a_line_has_time_level_room_event_and_values(capsys: Captured) -> None:
    log.configure()
    log.get("coordinator").info("node joined", name="old laptop", layers=(0, 4), bytes=12, why="")
    expected = r'\S+T\d\d:\d\d:\d\d\.\d{3}Z info     coordinator  node joined name="old laptop" '
    assert re.fullmatch(expected + r'layers="\(0, 4\)" bytes=12 why=""', one_line(capsys))


def test_json_lines_parse(capsys: Captured) -> None:
    log.configure(json=True)
    log.get("worker").warning("head lost", again_in_s=1.5, layers={3}, error=ValueError("no"))
    line = json.loads(one_line(capsys))
    assert list(line)[:4] == ["time", "level", "room", "event"]
    assert (line["level"], line["room"], line["event"]) == ("warning", "worker", "head lost")
    assert (line["again_in_s"], line["layers"], line["error"]) == (1.5, "{3}", "no")


def test_a_logger_made_before_configure_follows_it(capsys: Captured) -> None:
    early = log.get("early")
    log.configure(level="warning")
    early.info("too quiet")
    early.error("heard")
    assert "error    early        heard" in one_line(capsys)


def test_configuring_again_replaces(capsys: Captured) -> None:
    log.configure(json=True, level="debug")
    log.configure(level="debug")
    log.get("a").debug("once")
    assert "debug    a            once" in one_line(capsys)


@pytest.mark.parametrize(
    "key",
    ["code", "token", "key", "secret", "authorization", "Authorization", "pairing_code", "api_token", "X-Api-Key"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_cut_out(capsys: Captured, key: str, as_json: bool) -> None:
    log.configure(json=as_json)
    log.get("identity").info("paired", **{key: "4-otter-maple-drum"}, headers={key: "4-otter-maple-drum"})
    line = one_line(capsys)
    assert "otter" not in line
    assert line.count("[redacted]") == 2


def test_figures_with_similar_names_stay(capsys: Captured) -> None:
    log.configure()
    log.get("a").info("x", layer_tokens=5, exit_code=2, tokens=3, keys=1)
    assert one_line(capsys).endswith("x layer_tokens=5 exit_code=2 tokens=3 keys=1")


@pytest.mark.parametrize("nasty", ["a\nb", "a\r\nfake line", "\x1b[2Jgone", "\x9b31m", "a\u2028b", "\udc80"])
@pytest.mark.parametrize("as_json", [False, True])
def test_values_from_outside_cannot_break_a_line(capsys: Captured, nasty: str, as_json: bool) -> None:
    log.configure(json=as_json)
    log.get("discovery").warning("saw " + nasty, peer=nasty, **{nasty: 1})
    assert one_line(capsys).isprintable()


def test_long_values_are_cut(capsys: Captured) -> None:
    log.configure()
    log.get("a").info("x", answer="y" * 1_000_000)
    line = one_line(capsys)
    assert len(line) < 3000
    assert "(1000000 characters)" in line


def test_an_exception_fits_on_its_line(capsys: Captured) -> None:
    log.configure()

    def breaks() -> None:
        raise ValueError("two\nlines")

    try:
        breaks()
    except ValueError:
        log.get("worker").exception("step failed", number=3)
    line = one_line(capsys)
    assert 'number=3 error="ValueError: two\\nlines" at="telemetry/test_log.py:' in line
    assert " breaks < telemetry/test_log.py:" in line


def test_libraries_take_the_same_road_from_warning_up(capsys: Captured) -> None:
    log.configure(json=True, level="debug")
    logging.getLogger("zeroconf").info("chatter")
    try:
        raise OSError("no route")
    except OSError as error:
        logging.getLogger("aiohttp.server").error("Unhandled %s", "thing", exc_info=error)
    line = json.loads(one_line(capsys))
    assert (line["room"], line["level"], line["event"]) == ("aiohttp.server", "error", "Unhandled thing")
    assert line["error"] == "OSError: no route"


def test_python_warnings_take_the_same_road(capsys: Captured) -> None:
    log.configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings puts the stock showwarning back for its duration
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old\nway", DeprecationWarning, stacklevel=1)
    assert "warning  py.warnings  DeprecationWarning: old\\nway (telemetry/test_log.py:" in one_line(capsys)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'"):
        log.configure(level="loud")


def test_without_configure_stdout_stays_clean_and_secrets_too() -> None:
    program = "from vramancer_cli.telemetry import log; l = log.get('a'); l.info('x'); l.error('y', token='otter')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert "'y'" in done.stderr and "otter" not in done.stderr
