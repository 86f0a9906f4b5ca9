from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from commands.board import Board
from commands.node_details import NodeDetails
from tests.helpers.boards import ATTIC, CLUSTER, DESK, GIB, KITCHEN, SPARE, drawn
from vramancer_cli.cluster.status import ClusterStatus, DeviceStatus, LinkStatus, NodeStatus

ESCAPE = "\x1b"
BAR = re.compile(r"^ ([█▒▓░]{20,}) *$")


def bar_of(lines: list[str]) -> str:
    return next(found[1] for line in lines if (found := BAR.match(line)))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_line_fits_and_every_node_is_named(width: int) -> None:
    lines = drawn(Board(CLUSTER), width)
    assert max(cell_len(line) for line in lines) <= width
    for node in CLUSTER.nodes:
        assert any(node.name in line for line in lines)


def test_at_80_columns_nothing_that_matters_is_cut() -> None:
    text = "\n".join(drawn(Board(CLUSTER), 80))
    for fact in (
        "otter-cove", "ready", "up 2 h 14 min", "meta-llama/Llama-3.3-70B-Instruct", "bfloat16", "80 layers",
        "context 8192 tokens", "23.4 tokens/s", "2 running, 1 waiting", "http://127.0.0.1:5000", "22/24 GiB",
        "9.7/16 GiB", "3.0/8.0 GiB", "0/6.0 GiB", "2.1 ms", "15 ms", "RTX 4090", "GTX 1080", "kitchen-macbook",
        "Windows", "loading", "spare", "0–39 (40 layers)", "64–79 (16 layers, 50% loaded)", "the head relays",
    ):  # fmt: skip
        assert fact in text


def test_what_guessing_ahead_is_worth_is_told_where_it_happened() -> None:
    guessing = replace(CLUSTER, tokens_per_trip=2.456, draft_acceptance=0.834)
    assert "2.46 tokens a trip" in "\n".join(drawn(Board(guessing), 80))
    assert "83% of guesses right" in "\n".join(drawn(Board(guessing), 80))
    silent = replace(CLUSTER, tokens_per_trip=1.0, draft_acceptance=None)
    assert drawn(Board(silent), 80) == drawn(Board(CLUSTER), 80)


def test_a_link_is_told_of_once_its_speed_is_known() -> None:
    links = (LinkStatus("desk", "attic", 12_250_000, "int8"), LinkStatus("attic", "desk", 0, "plain"))
    lines = [line for line in drawn(Board(replace(CLUSTER, links=links)), 80) if "activations" in line]
    assert [line.strip(" ·") for line in lines] == ["desk to attic: 98 Mbit/s, activations int8"]


@pytest.mark.parametrize("width", [80, 120])
def test_segments_are_proportional_to_layers_and_fill_the_line(width: int) -> None:
    bar = bar_of(drawn(Board(CLUSTER), width))
    assert len(bar) == width - 2
    for fill, layers in (("█", 40), ("▒", 24)):
        assert abs(bar.count(fill) - layers / 80 * len(bar)) <= 1
    unloaded = bar.count("░")
    assert abs(bar.count("▓") - unloaded) <= 1, "half of the attic's part is loaded"
    assert re.fullmatch("█+▒+▓+░+", bar)


def test_each_boundary_stands_under_its_segment() -> None:
    lines = drawn(Board(CLUSTER), 80)
    at = next(index for index, line in enumerate(lines) if BAR.match(line))
    bar, numbers = lines[at], lines[at + 1]
    assert numbers.index("40") == bar.index("▒")
    assert numbers.index("64") == bar.index("▓")
    assert numbers.rstrip().endswith("80")


def test_columns_are_aligned() -> None:
    lines = drawn(Board(CLUSTER), 80)
    header = next(line for line in lines if "node" in line and "memory" in line)
    rows = lines[lines.index(header) + 1 :][: len(CLUSTER.nodes)]
    assert {row.index("GiB") for row in rows} == {rows[0].index("GiB")}
    assert {row.index("●") for row in rows} == {header.index("state")}
    for row, system in zip(rows, ("Linux", "macOS", "Windows", "Linux"), strict=True):
        assert row[header.index("system") :].startswith(system)


def test_into_a_pipe_there_are_no_codes() -> None:
    assert not any(ESCAPE in line for line in drawn(Board(CLUSTER), 80))


def test_on_a_terminal_each_node_has_one_colour_in_table_bar_and_legend() -> None:
    lines = drawn(Board(CLUSTER), 80, colour=True)
    colours = [re.findall(r"\x1b\[([0-9;]*)m■", line) for line in lines if "desk" in line]
    assert colours[0] == colours[1][:1]
    bar = next(line for line in lines if "█" * 10 in line)
    assert colours[0][0] in bar


def test_without_unicode_it_is_ascii_and_still_exact() -> None:
    lines = drawn(Board(replace(CLUSTER, model="small")), 80, encoding="ascii")
    bar = next(line.strip() for line in lines if line.startswith(" ####"))
    assert len(bar) == 78
    assert re.fullmatch(r"#+=+\++\.+", bar)


def test_the_reason_stands_there_while_it_is_not_ready() -> None:
    waiting = replace(CLUSTER, state="waiting", reason="31.4 GiB more are needed.", nodes=(SPARE,))
    lines = drawn(Board(waiting), 80)
    assert "waiting" in lines[0]
    assert any("31.4 GiB more are needed." in line for line in lines)
    assert not any(BAR.match(line) for line in lines)


def test_a_note_is_shown() -> None:
    assert any("No answer for 5 s" in line for line in drawn(Board(CLUSTER, "No answer for 5 s"), 80))


def test_planner_reasons_need_a_wide_terminal() -> None:
    assert not any(DESK.why in line for line in drawn(Board(CLUSTER), 80))
    assert any(DESK.why in line for line in drawn(Board(CLUSTER), 120))


def test_a_name_cannot_command_the_terminal() -> None:
    hostile = replace(KITCHEN, name="x\x1b[2J\x1b]0;owned\x07[bold]y[/]", why="\x1b[31m", os="\x9b31m")
    for colour in (False, True):
        text = "\n".join(
            drawn(Board(replace(CLUSTER, nodes=(DESK, hostile), model="[red]m\x1b[0m")), 80, colour=colour)
        )
        assert "\x1b[2J" not in text
        assert "\x1b]0" not in text
        assert "\x9b" not in text
        assert "[bold]" in text, "markup in a name is text"


def test_layers_that_contradict_the_model_are_left_out_of_the_bar() -> None:
    odd = replace(CLUSTER, nodes=(DESK, replace(KITCHEN, layers=(70, 200)), replace(ATTIC, layers=(5, 5))))
    bar = bar_of(drawn(Board(odd), 80))
    assert set(bar) == {"█", "░"}


@st.composite
def clusters(draw: st.DrawFn) -> ClusterStatus:
    cuts = sorted(draw(st.sets(st.integers(1, 127), max_size=11)))
    edges = [0, *cuts, 128]
    names = st.text(min_size=1, max_size=50)

    def node(start: int, end: int) -> NodeStatus:
        limit = draw(st.integers(0, 10**13))
        return replace(
            KITCHEN,
            id=f"{start}-{end}",
            name=draw(names),
            os=draw(names),
            device_name=draw(names),
            layers=(start, end),
            memory_limit_bytes=limit,
            memory_used_bytes=draw(st.integers(0, limit)),
            round_trip_s=draw(st.floats(0, 20)),
            state=draw(st.sampled_from(["ready", "loading", "lost"])),
            loaded_fraction=draw(st.floats(0, 1)),
        )

    nodes = tuple(node(start, end) for start, end in itertools.pairwise(edges))
    return replace(CLUSTER, layer_count=128, model=draw(names), reason=draw(st.text(max_size=300)), nodes=nodes)


@settings(max_examples=40, deadline=None)
@given(clusters(), st.integers(60, 200), st.booleans())
def test_any_cluster_fits_any_width(status: ClusterStatus, width: int, colour: bool) -> None:
    for line in drawn(Board(status), width, colour=colour):
        assert cell_len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width


def test_sizes_share_the_limits_unit() -> None:
    small = replace(DESK, memory_used_bytes=300 * 2**20, memory_limit_bytes=2 * GIB)
    assert any("0.3/2.0 GiB" in line for line in drawn(Board(replace(CLUSTER, nodes=(small,))), 80))


def test_a_node_of_two_devices_shows_each() -> None:
    first = DeviceStatus("cuda:0", "NVIDIA GeForce RTX 3090", 20 * GIB, 24 * GIB, (0, 30), 300)
    second = replace(first, device="cuda:1", device_name="NVIDIA TITAN V", memory_limit_bytes=12 * GIB, layers=(30, 40))
    spare = replace(second, device="cpu", device_name="a processor", memory_used_bytes=0, layers=None)
    desk = replace(DESK, device="cuda:0 + cuda:1 + cpu", device_name="a + b + c", devices=(first, second, spare))
    lines = drawn(Board(replace(CLUSTER, nodes=(desk, KITCHEN))), 80)
    text = "\n".join(lines)
    assert max(cell_len(line) for line in lines) <= 80
    for fact in ("3 devices", "TITAN V", "20/24 GiB", "20/12 GiB", "desk cuda:0", "desk cuda:1", "30–39 (10 layers)"):
        assert fact in text
    assert re.fullmatch("█+▒+▓+░+", bar_of(lines))
    details = "\n".join(drawn(NodeDetails(replace(CLUSTER, nodes=(desk,))), 80))
    for fact in ("cuda:1", "TITAN V", "30–39 (10 layers), 300 layer-tokens computed", "none, 300 layer-tokens"):
        assert fact in details


def test_the_prefix_cache_is_shown_once_something_was_asked() -> None:
    assert "prefix cache" not in "\n".join(drawn(Board(CLUSTER), 80))
    used = replace(CLUSTER, prefix_found_tokens=30, prefix_asked_tokens=120)
    assert "prefix cache 25% (30 of 120 tokens)" in "\n".join(drawn(Board(used), 80))
