from __future__ import annotations

import pytest

from vramancer_cli.errors import UsageError
from vramancer_cli.service.contracts import refuse_unwritable


@pytest.mark.parametrize("word", ["a\nb", "a\0b", "a\x1bb", "caf\udce9", "a\uffffb"])
def test_what_no_service_file_can_hold(word: str) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        refuse_unwritable(["program", word])


def test_all_else_may_stand_there() -> None:
    refuse_unwritable(["/opt/ä b/日本\u00a0%$\"'\\;&", ""])
    with pytest.raises(UsageError, match="'&'"):
        refuse_unwritable(["a&b"], also="&|")
