"""The world that a chat template runs in: jinja2's sandbox as transformers sets it up, with every way out of it priced.

What a template can reach is listed, not what it cannot: plain data, its own macros and namespaces, the loop, and the
filters, tests and methods that have a price. Must never hand out an object of Python's own that can be called.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final

from jinja2 import TemplateError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from vramancer_cli.serving.template_budget import VALUE_UNITS, VIEWS, Budget, BudgetError, Paid
from vramancer_cli.serving.template_filters import filters, tests
from vramancer_cli.serving.template_methods import Method, binary, method
from vramancer_cli.serving.template_prices import size_units, text

EACH: Final = "#each"
WORK: Final = "#work"
SLICED: Final = "#sliced"
COMPARED: Final = "#compared"
LITERAL: Final = "#literal"
KEY: Final = "#key"
"""Names of filters that no template can write: what `template` leads jinja2's own work through."""

_DATA: Final = (str, int, float, bool, type(None), list, tuple, dict, range)
_OBJECTS: Final = (Undefined, Namespace, LoopContext, Macro, Method, *VIEWS)
_LOOP_CALLS: Final = ("changed", "cycle")
_MOST_DATE_CHARACTERS: Final = 100
_NAMESPACE_UNITS: Final = 512


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _CheckedNamespace(Namespace):
    """As transformers has it: no name that begins with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError("a namespace may not hold a name that begins with an underscore")


class World(ImmutableSandboxedEnvironment):
    """For one template. Renders only within `spending`, one rendering at a time."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Without the optimizer, and with a `finalize` that needs the context, nothing of the template runs while it is
        # compiled: jinja2 would compute constant expressions there, whatever they cost.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=self._finalize,
            cache_size=0,
        )
        self._budget: Budget | None = None
        self.filters = filters(self._wallet) | self._inner_filters()
        self.tests = tests(self._wallet)
        self.globals: dict[str, Any] = {
            "range": Method(safe_range),
            "dict": Method(self._dict),
            "namespace": Method(self._namespace),
            "raise_exception": Method(_raise),
            "strftime_now": Method(_now),
        }

    @contextmanager
    def spending(self, budget: Budget) -> Generator[None]:
        self._budget = budget
        try:
            yield
        finally:
            self._budget = None

    def _wallet(self) -> Budget:
        if self._budget is None:
            raise BudgetError("it runs outside a rendering")
        return self._budget

    def _inner_filters(self) -> dict[str, Callable[..., Any]]:
        return {
            EACH: self._each,
            WORK: self._work,
            SLICED: self._sliced,
            COMPARED: self._compared,
            LITERAL: self._literal,
            KEY: self._key,
        }

    # What jinja2's compiled code calls.

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self._reached(obj, attribute, super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        key: Any = argument
        if isinstance(argument, (tuple, list, dict)):
            self._wallet().weigh(key)  # hashed with all that is in it, or written into a sentence about it
        return self._reached(obj, key, super().getitem(obj, key))

    def wrap_str_format(self, value: Any) -> None:
        """Formatting is a method like others here, see `_reached`."""

    def _reached(self, obj: Any, name: Any, value: Any) -> Any:
        """Raises SecurityError for anything but data, the template's own objects and the methods that have a price."""
        if isinstance(value, _OBJECTS) or type(value) in _DATA or isinstance(value, str):
            return value
        if isinstance(obj, LoopContext) and name in _LOOP_CALLS:
            return Method(lambda *args: self._loop_call(value, *args))
        found = method(self._wallet, obj, name) if isinstance(name, str) else None
        if found is None:
            raise SecurityError(f"access to '{name!s:.40}' of a {type(obj).__name__} is not offered")
        return found

    def call(__self, __context: Context, __obj: Any, *args: Any, **named: Any) -> Any:  # noqa: N805  # as jinja2 has it
        if isinstance(__obj, Macro):
            return super().call(__context, __obj, *args, **named)
        named.pop("_loop_vars", None)
        named.pop("_block_vars", None)
        if isinstance(__obj, Undefined):
            return __obj()  # says what is undefined
        if not isinstance(__obj, Method):
            raise SecurityError(f"a {type(__obj).__name__} cannot be called")
        return __obj(*args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return binary(self._wallet(), operator, left, right)

    @pass_context
    def _finalize(self, context: Context, value: Any) -> str:
        return str(text(self._wallet(), value))

    # What `template` puts around the work that jinja2 would do unseen.

    def _each(self, value: Iterable[Any], steps: int) -> Paid:
        return self._wallet().each(value, steps)

    def _work(self, steps: int) -> None:
        self._wallet().work(steps)

    def _sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        self._wallet().pay(size_units(part))
        return part

    def _compared(self, value: Any) -> Any:
        self._wallet().weigh(value)
        return value

    def _literal(self, value: Any) -> Any:
        self._wallet().pay(VALUE_UNITS + size_units(value))
        return value

    def _key(self, value: Any) -> Any:
        self._wallet().weigh(value)  # hashed with all that is in it
        return value

    # The functions that templates call by name.

    def _dict(self, *args: Any, **named: Any) -> dict[Any, Any]:
        for part in (*args, named):
            self._wallet().weigh(part)
        return self._literal(dict(*args, **named))

    def _namespace(self, *args: Any, **named: Any) -> Namespace:
        for part in (*args, named):
            self._wallet().weigh(part)
        self._wallet().pay(_NAMESPACE_UNITS)
        return _CheckedNamespace(*args, **named)

    def _loop_call(self, value: Callable[..., Any], *args: Any) -> Any:
        self._wallet().weigh(args)
        return value(*args)


def _raise(message: Any) -> Any:
    raise TemplateError(message if isinstance(message, str) else type(message).__name__)


def _now(form: Any) -> str:
    if not isinstance(form, str) or len(form) > _MOST_DATE_CHARACTERS:
        raise BudgetError("it writes a date of no known form")
    return datetime.datetime.now().strftime(form)  # the user's own time, as transformers has it
