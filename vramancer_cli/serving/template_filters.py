"""The filters and tests that chat templates have: jinja2's own behind a price, and transformers' `tojson`.

What no conversation needs is not here, so for a template it does not exist. No filter gives anything lazy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Final, cast

from jinja2 import filters as jinja_filters
from jinja2 import tests as jinja_tests

from vramancer_cli.serving import template_prices as prices
from vramancer_cli.serving.template_budget import Budget, BudgetError

Function = Callable[..., Any]
Wallet = Callable[[], Budget]
"""Where the running rendering's budget is."""

_MOST_INDENT: Final = 32
_JSON_GROWTH: Final = 2
_ASCII_GROWTH: Final = 12
"""Characters that one character can become in JSON of ASCII letters only: two escapes of six."""

_FILTERS: Final[dict[str, Function]] = {
    **dict.fromkeys(("count", "d", "default", "first", "last", "length"), prices.peeked),
    **dict.fromkeys(("abs", "float", "int", "items", "list", "reverse"), prices.touched),
    **dict.fromkeys(("capitalize", "e", "escape", "lower", "upper"), prices.written),
    **dict.fromkeys(("safe", "string"), prices.text),
    **dict.fromkeys(("max", "min", "unique"), prices.walked),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), prices.each),
    **dict.fromkeys(("dictsort", "sort"), prices.ordered),
    "format": prices.formatted,
    "indent": prices.indented,
    "join": prices.joined,
    "replace": prices.replaced,
    "round": prices.rounded,
    "title": prices.titled,
    "trim": prices.stripped,
}
_ASKING: Final = (
    "boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sameas",
    "sequence", "string", "true", "undefined",
)  # fmt: skip
_COMPARING: Final = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "gt", "greaterthan", "in", "le", "lessthan", "lower",
    "lt", "ne", "upper",
)  # fmt: skip
_TESTS: Final[dict[str, Function]] = {
    **dict.fromkeys(("divisibleby", "even", "odd"), prices.numbers),
    **dict.fromkeys(_ASKING, prices.peeked),
    **dict.fromkeys(_COMPARING, prices.walked),
}


def filters(wallet: Wallet) -> dict[str, Function]:
    originals: dict[str, Any] = cast("Any", jinja_filters).FILTERS
    priced = {name: _priced(originals[name], price, wallet) for name, price in _FILTERS.items()}
    return priced | {"tojson": functools.partial(_tojson, wallet)}


def tests(wallet: Wallet) -> dict[str, Function]:
    originals: dict[str, Any] = cast("Any", jinja_tests).TESTS
    return {name: _priced(originals[name], price, wallet) for name, price in _TESTS.items()}


def _priced(original: Function, price: Function, wallet: Wallet) -> Function:
    at = 1 if hasattr(original, "jinja_pass_arg") else 0  # some are handed jinja2's environment or context first

    @functools.wraps(original)
    def paid(*args: Any, **named: Any) -> Any:
        budget = wallet()
        value = price(budget, *args[at:], **named)
        if isinstance(args[at], str) and type(args[at]) is not str:
            value = args[at]  # markup stays markup: it escapes what is joined to it
        result = original(*args[:at], value, *args[at + 1 :], **named)
        return result if price is prices.peeked else prices.settled(budget, result)

    return paid


def _tojson(
    wallet: Wallet,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: JSON without jinja2's escaping for HTML."""
    budget = wallet()
    weight = budget.weigh(value, as_text=True)
    wide = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    if wide > _MOST_INDENT or budget.weigh(separators).characters > _MOST_INDENT:
        raise BudgetError("it makes too much text")
    growth = _ASCII_GROWTH if ensure_ascii else _JSON_GROWTH
    budget.pay(weight.values * weight.depth * max(0, wide) + growth * weight.units)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget.pay(len(text))
    return text
