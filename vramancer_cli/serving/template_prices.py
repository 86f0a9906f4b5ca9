"""What the operations of a chat template cost, paid before they run, by what they read and the most they can make.

Each price takes the budget, then the operation's own arguments, and gives the value to go on with. Must never call a
function or look up an attribute that the template chose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, cast

from jinja2.exceptions import SecurityError

from vramancer_cli.serving.template_budget import MAX_INTEGER, SLOT_UNITS, Budget, BudgetError

PIECE_UNITS: Final = 64
"""A small string with its place in a list."""
FIELD_CHARACTERS: Final = 1_500
"""What one format field without text can take, its width and precision being below 1000."""
GROWTH: Final = 6
"""Characters that one character can become, escaped or in another case."""
WIDE_FIELD: Final = re.compile(r"\d{4,}|\*")
INNER_MARK: Final = "#"
"""Begins the names of filters that no template can write, but could name in a text."""

_ITEM_STEPS: Final = 50
"""One item through a filter or test that is given by name."""
_MOST_PLACES: Final = 20
_LINE_ENDS: Final = "\n\r\x0b\x0c\x1c\x1d\x1e"
_BLANKS: Final = " \t\x1f" + _LINE_ENDS


def size_units(value: Any) -> int:
    """What the value takes by itself, not counting what lies in it."""
    if isinstance(value, str):
        return len(value)
    return SLOT_UNITS * (1 + len(cast("Any", value))) if isinstance(value, (list, tuple, dict)) else 1


def settled(budget: Budget, result: Any) -> Any:
    """A result paid for, with everything lazy made into a list."""
    if isinstance(result, Iterator):
        return budget.items(cast("Any", result))
    if isinstance(result, int) and abs(result) >= MAX_INTEGER:
        raise BudgetError("it computes with huge numbers")
    budget.pay(size_units(result))
    return result


def text(budget: Budget, value: Any) -> str:
    """The value as it is written out, paid for. Raises BudgetError for what is no plain data."""
    if isinstance(value, str):
        budget.pay(len(value))
        return value
    budget.weigh(value, as_text=True)
    return str(value)


def pieces(value: str, ends: str = _LINE_ENDS) -> int:
    """At most so many pieces after splitting at any of `ends`."""
    return 1 + (sum(map(value.count, ends)) if value.isascii() else len(value) // 2)


def peeked(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
    """For what takes the same time however large the value is."""
    return value


def touched(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
    """For what walks the value itself, and nothing in it."""
    for part in (value, *args, *named.values()):
        budget.pay(size_units(part))
    return value


def walked(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
    """For what compares or hashes everything in the value."""
    for part in (value, *args, *named.values()):
        budget.weigh(part, as_text=True)
    return value


def each(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
    """For what applies a filter or a test, given by name, to every item."""
    if args and not (isinstance(args[0], str) and args[0][:1] != INNER_MARK):
        raise SecurityError("it names a filter or test that is not offered")
    budget.weigh([*args, *named.values()])  # also what is no name is written out, in the sentence that says so
    return budget.items(value, _ITEM_STEPS)


def ordered(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
    weight = budget.weigh(value, as_text=True)
    budget.pay(weight.units * weight.values.bit_length())
    return value


def numbers(budget: Budget, value: Any, *args: Any) -> Any:
    """For what uses `%` between numbers: between texts it would format."""
    if not all(isinstance(part, (int, float)) for part in (value, *args)):
        raise TypeError("this test is for numbers")
    return value


def written(budget: Budget, value: Any) -> str:
    """For what gives a text of its value, escaped or in another case."""
    source = text(budget, value)
    budget.pay(GROWTH * len(source))
    return source


def stripped(budget: Budget, value: Any, chars: Any = None) -> str:
    source = text(budget, value)
    budget.pay(len(source) * (len(chars) if isinstance(chars, str) else 1))
    return source


def replaced(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> str:
    source, old, new = (text(budget, part) for part in (value, old, new))
    budget.pay(GROWTH * (len(source) + source.count(old) * len(new)))
    return source


def indented(budget: Budget, value: Any, width: Any = 4, *args: Any, **named: Any) -> str:
    source = text(budget, value)
    wide = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    budget.pay(len(source) + pieces(source) * (PIECE_UNITS + max(0, wide)))
    return source


def titled(budget: Budget, value: Any) -> str:
    source = text(budget, value)
    budget.pay(PIECE_UNITS * len(source))
    return source


def joined(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> list[Any]:
    items = budget.items(value)
    budget.weigh(items, as_text=True)
    budget.pay(GROWTH * len(text(budget, d)) * len(items))
    touched(budget, attribute)
    return items


def rounded(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if not (isinstance(precision, int) and abs(precision) <= _MOST_PLACES):
        raise BudgetError("it computes with huge numbers")
    return value


def formatted(budget: Budget, value: Any, *args: Any, **named: Any) -> str:
    source = text(budget, value)
    if WIDE_FIELD.search(source):
        raise BudgetError("it makes too much text")
    arguments = budget.weigh([*args, *named.values()], as_text=True)
    budget.pay(len(source) + source.count("%") * (FIELD_CHARACTERS + 4 * arguments.units))
    return source


def split(budget: Budget, value: str, *args: Any, **named: Any) -> None:
    separator = args[0] if args else named.get("sep")
    count = value.count(separator) if isinstance(separator, str) and separator else pieces(value, _BLANKS)
    budget.pay(2 * len(value) + PIECE_UNITS * (1 + count))
