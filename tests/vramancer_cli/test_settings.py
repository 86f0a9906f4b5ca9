from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.types import Address
from vramancer_cli.errors import UsageError
from vramancer_cli.settings import (
    NodeSettings,
    parse_address,
    parse_context,
    parse_device,
    parse_draft,
    parse_node_name,
    parse_port,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1048576", 2**20),
        ("6GiB", 6 * 2**30),
        ("6 gib", 6 * 2**30),
        ("512MiB", 512 * 2**20),
        ("4KiB", 4096),
        ("8GB", 8 * 10**9),
        ("3MB", 3 * 10**6),
        ("7kb", 7000),
        ("1.5G", 3 * 2**29),
        ("2T", 2**41),
        ("9000000000000001", None),
        (" 10 M ", 10 * 2**20),
    ],
)
def test_sizes(text: str, size_bytes: int | None) -> None:
    if size_bytes is None:
        with pytest.raises(UsageError):
            parse_size(text)
    else:
        assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "6Gigs", "1e9", "0", "0.0GiB", "6 G B", "٣GiB", "1_000", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert "6GiB" in caught.value.hint


@given(st.integers(1, 10**14))
def test_whole_bytes_are_exact(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except UsageError as error:
        assert error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("desk", Address("desk", 5001)),
        ("desk.local:7000", Address("desk.local", 7000)),
        (" 192.168.1.20:5001 ", Address("192.168.1.20", 5001)),
        ("[fe80::1]:7000", Address("fe80::1", 7000)),
        ("[::1]", Address("::1", 5001)),
        ("fe80::1%eth0", Address("fe80::1%eth0", 5001)),
        ("2001:db8::7", Address("2001:db8::7", 5001)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@given(st.from_regex(r"[a-z0-9]{1,20}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True), st.integers(1, 65535))
def test_an_address_reads_back_as_it_is_written(host: str, port: int) -> None:
    assert parse_address(str(Address(host, port))) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":5001",
        "desk:",
        "desk:x",
        "desk:0",
        "desk:65536",
        "a b",
        "http://desk:5001",
        "[::1",
        "[desk]:1",
        "[::1]x",
        "-x",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@given(st.text(max_size=300))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        assert 0 < parse_address(text).port < 65536
    except UsageError as error:
        assert error.exit_code == 2


@pytest.mark.parametrize("text", ["auto", "cpu", "cpu:1", "mps", "cuda", "CUDA:1", " xpu:0 ", "rocm:2"])
def test_devices(text: str) -> None:
    assert parse_device(text) == text.strip().lower()


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cpu:", "mps:1", "cuda:1:2", "cuda:-1"])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(UsageError):
        parse_device(text)


def test_ports_may_be_0_and_contexts_not() -> None:
    assert parse_port("0") == 0
    assert parse_port(65535) == 65535
    assert parse_context("4096") == 4096
    for wrong in ("-1", "65536", "1.5", "", "²"):
        with pytest.raises(UsageError):
            parse_port(wrong)
    with pytest.raises(UsageError):
        parse_context("15")


def test_how_many_tokens_to_guess() -> None:
    assert [parse_draft(text) for text in ("auto", " Off ", "0", "1", 16)] == [None, 0, 0, 1, 16]
    for wrong in ("17", "-1", "on", ""):
        with pytest.raises(UsageError):
            parse_draft(wrong)


def test_node_names() -> None:
    assert parse_node_name(" Büro-PC ") == "Büro-PC"
    for wrong in ("", " ", "x" * 41, "a\nb", "a\x1b[31m"):
        with pytest.raises(UsageError):
            parse_node_name(wrong)


def test_the_token_is_in_no_log() -> None:
    settings = NodeSettings(
        role="head", model=None, host="127.0.0.1", port=5000, port_given=False, node_port=5001, node_port_given=False,
        name="desk", devices=("auto",), memory_bytes=(), dtype="auto", context_tokens=None, state_folder=Path("here"),
        api_token="s3cret", log_json=False, head=None,
    )  # fmt: skip
    assert "s3cret" not in f"{settings!r} {settings}"


def test_reading_settings_is_light() -> None:
    program = "import sys, vramancer_cli.settings; print([m for m in ('msgspec', 'typer', 'rich') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert ran.stdout == "[]\n"
