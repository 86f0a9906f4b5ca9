"""The methods that texts, lists and dicts have for chat templates, and the operators between values, each with a price.

A template never holds a bound method of Python's own, only a `Method`. What changes a list or dict is not here.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Mapping
from typing import Any, Final

from jinja2.exceptions import SecurityError

from vramancer_cli.serving import template_prices as prices
from vramancer_cli.serving.template_budget import MAX_INTEGER, Budget, BudgetError
from vramancer_cli.serving.template_filters import Function, Wallet


class Method:
    """What a template may call: a function of ours, or a method of a plain value behind its price."""

    __slots__ = ("_call",)

    def __init__(self, call: Function) -> None:
        self._call = call

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._call(*args, **named)


def method(wallet: Wallet, value: Any, name: str) -> Method | None:
    """The method `name` of a plain value, if templates have it."""
    price = next((table.get(name) for kind, table in _METHODS.items() if isinstance(value, kind)), None)
    if price is None:
        return None
    if name == "format":
        return Method(lambda *args, **named: _Fields(wallet()).vformat(value, args, named))

    def call(*args: Any, **named: Any) -> Any:
        budget = wallet()
        price(budget, value, *args, **named)
        return prices.settled(budget, getattr(value, name)(*args, **named))  # a name of the table

    return Method(call)


def _asking(budget: Budget, value: Any, *args: Any) -> None:
    for part in args:
        budget.weigh(part, as_text=True)
    budget.pay(prices.size_units(value))


def _searching(budget: Budget, value: Any, *args: Any) -> None:
    """Of lists: everything in them may be compared."""
    budget.weigh(value)
    _asking(budget, value, *args)


def _joining(budget: Budget, value: str, *args: Any) -> None:
    for part in args:
        prices.joined(budget, part, value)


_TEXT_ASKING: Final = (
    "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
    "islower", "isnumeric", "isspace", "istitle", "isupper", "partition", "removeprefix", "removesuffix", "rfind",
    "rindex", "rpartition", "startswith",
)  # fmt: skip
_METHODS: Final[dict[Any, dict[str, Function]]] = {
    str: {
        **dict.fromkeys(_TEXT_ASKING, _asking),
        **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), prices.written),
        **dict.fromkeys(("lstrip", "rstrip", "strip"), prices.stripped),
        **dict.fromkeys(("rsplit", "split", "splitlines"), prices.split),
        "format": prices.peeked,
        "join": _joining,
        "replace": prices.replaced,
    },
    dict: dict.fromkeys(("copy", "get", "items", "keys", "values"), _asking),
    (list, tuple): dict.fromkeys(("count", "index"), _searching),
}


class _Fields(string.Formatter):
    """`str.format` whose fields are plain data, and are paid for."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def vformat(self, format_string: str, args: Any, kwargs: Mapping[str, Any]) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded there for literals
        self._budget.pay(prices.PIECE_UNITS * len(format_string))
        return super().vformat(format_string, args, kwargs)

    def get_field(self, field_name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Only arguments themselves: '{0.x}' and '{0[x]}' reach into objects, which no chat template needs."""
        if not (field_name.isdecimal() or field_name.isidentifier()):
            raise SecurityError("a format field reaches into an object")
        key = int(field_name) if field_name.isdecimal() else field_name
        return self.get_value(key, args, kwargs), key

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self._budget.weigh(value, as_text=True)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if prices.WIDE_FIELD.search(format_spec):
            raise BudgetError("it makes too much text")
        self._budget.pay(prices.FIELD_CHARACTERS + self._budget.weigh(value, as_text=True).units)
        return super().format_field(value, format_spec)


_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right,
    "//": lambda left, right: left // right,
    "**": lambda left, right: left**right,
    "%": operator.mod,
}


def binary(budget: Budget, sign: str, left: Any, right: Any) -> Any:
    """One operator between two values: numbers that stay small, and texts and lists that are paid for."""
    if isinstance(left, str) and sign == "%":
        prices.formatted(budget, left, right)
    elif sign == "*":
        budget.pay(_product_units(left, right))
    else:
        budget.pay(prices.size_units(left) + prices.size_units(right))
    if sign == "**":
        _refuse_large_power(left, right)
    result = _OPERATORS[sign](left, right)
    if isinstance(result, complex):
        raise TypeError("complex numbers are not offered")
    return prices.settled(budget, result)


def _product_units(left: Any, right: Any) -> int:
    for series, times in ((left, right), (right, left)):
        if isinstance(series, (str, list, tuple)) and isinstance(times, int):
            return prices.size_units(series) * max(1, times)
    return prices.size_units(left) + prices.size_units(right)


def _refuse_large_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and exponent * base.bit_length() > MAX_INTEGER.bit_length():
        raise BudgetError("it computes with huge numbers")
