"""What one rendering of a chat template may spend: steps and units. Counted, never timed, so the same everywhere.

A step is one node of the template run once. A unit is one character read or made, or its like in memory for other
values. Every operation pays before it runs. Must never import jinja2's environment or know a template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from jinja2 import Undefined

STEPS: Final = 3_000_000
STEPS_PER_VALUE: Final = 4_000
"""For every message, text and tool that comes with the request: long conversations take long templates round more."""
UNITS: Final = 16_000_000
UNITS_PER_CHARACTER: Final = 32
MAX_DEPTH: Final = 64
MAX_INTEGER: Final = 2**63

VALUE_UNITS: Final = 64
"""A value with its place in what holds it, as walking it or writing it out takes time and memory."""
SLOT_UNITS: Final = 8
"""A place in a list."""
_SCALARS: Final = (int, float, bool, type(None))
_EMPTY: Final[dict[str, str]] = {}
VIEWS: Final[tuple[type, ...]] = (type(_EMPTY.items()), type(_EMPTY.keys()), type(_EMPTY.values()))
_SERIES: Final = (list, tuple, *VIEWS)


class BudgetError(Exception):
    """The template asks for more work, memory or nesting than any conversation needs."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A value written out: how many values it has at all depths, its characters, and how deep they are nested."""

    values: int
    characters: int
    depth: int

    @property
    def units(self) -> int:
        return self.characters + VALUE_UNITS * self.values


class Budget:
    """One rendering's allowance. Raises BudgetError as soon as an operation would pass it."""

    __slots__ = ("_steps", "_units")

    def __init__(self, brought: Weight) -> None:
        """`brought`: what the request gives the template to work on."""
        self._steps = STEPS + STEPS_PER_VALUE * brought.values
        self._units = UNITS + UNITS_PER_CHARACTER * brought.units

    def work(self, steps: int) -> None:
        """Pay for so many nodes run."""
        self._steps -= max(1, steps)
        if self._steps < 0:
            raise BudgetError("it loops too long")

    def pay(self, units: int) -> None:
        """Pay for so many characters read or made."""
        if units > self._units:
            raise BudgetError("it makes too much text")
        self._units -= max(1, units)

    def weigh(self, value: Any, *, as_text: bool = False) -> Weight:
        """Pay for walking all of `value`. `as_text`: it will be written out, so all of it must be plain data."""
        weight = weigh(value, self._units, as_text=as_text)
        self.pay(weight.units)
        return weight

    def each(self, iterable: Iterable[Any], steps: int) -> Paid:
        """The same items, each of them paid for when it is taken."""
        return Paid(self, iterable, steps)

    def items(self, iterable: Iterable[Any], steps: int = 1) -> list[Any]:
        """All items in a list, paid for."""
        found: list[Any] = []
        for item in self.each(iterable, steps):
            self.pay(SLOT_UNITS)
            found.append(item)
        return found


class Paid:
    """An iterable that costs `steps` for each item taken. Its length is that of what it wraps."""

    __slots__ = ("_budget", "_iterable", "_steps")

    def __init__(self, budget: Budget, iterable: Iterable[Any], steps: int) -> None:
        self._budget = budget
        self._iterable = iterable
        self._steps = steps

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._budget.work(self._steps)
            yield item

    def __len__(self) -> int:
        return len(self._iterable)  # pyright: ignore[reportArgumentType]  # a TypeError is what jinja2 asks for here


def weigh(value: Any, most_units: int | None = None, *, as_text: bool = False) -> Weight:
    """Walk `value` as it would be written out or compared: a part that is held twice counts twice.

    Raises BudgetError past `most_units`, below `MAX_DEPTH`, and with `as_text` at what is no plain data.
    """
    if isinstance(value, str):
        return Weight(1, len(value), 0)
    values = characters = deepest = 0
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        values += 1
        deepest = max(deepest, depth)
        if depth > MAX_DEPTH:
            raise BudgetError("it nests values too deep")
        if isinstance(part, str):
            characters += len(part)
        elif isinstance(part, (*_SERIES, dict)):
            inner = cast("Any", (*part, *part.values()) if isinstance(part, dict) else part)
            waiting.extend((held, depth + 1) for held in inner)
        else:
            characters += _written_characters(part, as_text)
        if most_units is not None and characters + VALUE_UNITS * (values + len(waiting)) > most_units:
            raise BudgetError("it makes too much text")
    return Weight(values, characters, deepest)


def _written_characters(part: Any, as_text: bool) -> int:
    if isinstance(part, _SCALARS):
        return part.bit_length() // 3 if isinstance(part, int) else 0
    if isinstance(part, range):
        return 8 * len(part)
    if as_text and not isinstance(part, Undefined):
        raise BudgetError(f"it writes out a {type(part).__name__}, which is no text")
    return 0
