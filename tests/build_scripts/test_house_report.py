"""The house report counts what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build_scripts.house_report import FunctionSize, main, measure_file, measure_house, percentile, room_of

SOURCE = '''"""Module."""


class Box:
    @property
    def size(self) -> int:
        """Two lines

        and more.
        """
        return 1

    async def open(self) -> None:
        def inner() -> None: ...

        inner()


if True:

    def late(
        value: int,
    ) -> int:
        return value
'''


def test_functions_are_counted_without_docstrings_and_decorators() -> None:
    file = measure_file(SOURCE, "transport/box.py")
    assert file.lines == 24
    assert file.functions == (
        FunctionSize("Box.size", "transport/box.py", 6, 2),
        FunctionSize("Box.open", "transport/box.py", 13, 4),
        FunctionSize("Box.open.inner", "transport/box.py", 14, 1),
        FunctionSize("late", "transport/box.py", 21, 4),
    )


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("transport/link.py", "transport"),
        ("vramancer_cli/node.py", "vramancer_cli"),
        ("vramancer_cli/engine/deep/file.py", "vramancer_cli/engine"),
        ("tests/vramancer_cli/engine/test_shard.py", "tests/vramancer_cli"),
    ],
)
def test_rooms(path: str, room: str) -> None:
    assert room_of(path) == room


@pytest.mark.parametrize(("values", "expected"), [([], 0), ([7], 7), (range(1, 11), 9), (range(1, 12), 10)])
def test_p90(values: list[int], expected: int) -> None:
    assert percentile(values, 90) == expected


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for path, text in {
        "transport/box.py": SOURCE,
        "vramancer_cli/engine/shard.py": "def f():\n    pass\n",
        "tests/transport/test_box.py": "def test_x():\n" + "    pass\n" * 50,
        "elsewhere/x.py": SOURCE,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_sums_keep_program_and_tests_apart(house: Path) -> None:
    report = measure_house(house)
    assert [(room.room, room.files, room.lines) for room in report.rooms] == [
        ("transport", 1, 24),
        ("vramancer_cli/engine", 1, 2),
        ("tests/transport", 1, 51),
        ("program", 2, 26),
        ("tests", 1, 51),
    ]
    program = report.rooms[-2]
    assert (program.function_count, program.function_median, program.function_p90) == (5, 2, 4)
    assert [function.name for function in report.longest_functions][:2] == ["Box.open", "late"]
    assert [file.path for file in report.longest_files] == ["transport/box.py", "vramancer_cli/engine/shard.py"]


def test_json_and_table_say_the_same(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--root", str(house)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rooms"][0] == {
        "room": "transport", "files": 1, "lines": 24, "function_count": 4, "function_median": 3.0, "function_p90": 4,
    }  # fmt: skip
    assert main(["--root", str(house)]) == 0
    table = capsys.readouterr().out
    assert "Longest functions" in table and "Box.open  transport/box.py:13" in table
    assert any(line.split() == ["transport", "1", "24", "4", "3", "4"] for line in table.splitlines())


def test_this_house_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    rooms = {room["room"] for room in json.loads(capsys.readouterr().out)["rooms"]}
    assert {"transport", "vramancer_cli/scheduling", "build_scripts", "program", "tests"} <= rooms
