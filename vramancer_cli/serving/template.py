"""A model's chat template: Jinja from a stranger, run in a closed world, with everything that it does counted.

jinja2's sandbox, as transformers sets it up, keeps a template from Python; it does not keep it from running for hours
or filling memory, and what runs inside this process would take its event loop and every other request with it. So the
template is first read as a syntax tree: only what chat templates are written with is let through, and what jinja2 would
run unseen (loops, slices, comparisons, joining, literals) is led through functions that pay. Then `template_world` runs
it. Counting instead of a clock: the same conversation is refused everywhere or nowhere, however busy the machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

from vramancer_cli.errors import InvalidRequestError, ModelError
from vramancer_cli.serving.template_budget import MAX_INTEGER, Budget, BudgetError, weigh
from vramancer_cli.serving.template_world import COMPARED, EACH, KEY, LITERAL, SLICED, WORK, World

MAX_CHARACTERS: Final = 128 << 10
MAX_NODES: Final = 8_000
MAX_DEPTH: Final = 60
PROMPT_CHARACTERS: Final = 256 << 10
PROMPT_PER_CHARACTER: Final = 8
"""What a prompt may be at most, for each character that came with the request; and a system text of the template's."""

_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
_PROBE: Final = ({"role": "user", "content": "Hello"},)
_SENTENCE_CHARACTERS: Final = 300


class RefusedTemplateError(ModelError):
    """The model's chat template is refused."""

    hint = "Ask it through /v1/completions, or use another version of the model."


class ChatTemplate:
    """One template, compiled. Any thread may render; one rendering runs at a time."""

    def __init__(self, source: str) -> None:
        """Raises RefusedTemplateError for what no chat template needs, and for one that runs away with a mere hello."""
        self._world = World()
        self._rendering = threading.Lock()
        self._template = _compiled(self._world, source)
        with contextlib.suppress(InvalidRequestError):  # it may want other messages, which is its right
            self.render(_PROBE, {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        names: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt up to where the assistant speaks, as transformers renders it. `names`: the special tokens.

        Raises InvalidRequestError where the template refuses the messages or fails on them, and RefusedTemplateError
        where it does more than these messages are worth.
        """
        chat = [_message(message) for message in messages]
        variables = {**names, "messages": chat, "tools": tools, "documents": None, "add_generation_prompt": True}
        brought = weigh([chat, list(tools or ())])
        try:
            with self._rendering, self._world.spending(Budget(brought)):
                return _bounded(self._template.generate(variables), brought.characters)
        except (BudgetError, SecurityError) as error:
            raise _refused(error) from error
        except Exception as error:  # whatever a stranger's program raises
            sentence = f"This model's chat template {_verdict(error)} these messages: {_line(error)}."
            raise InvalidRequestError(sentence, param="messages", code="invalid_value") from error


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As templates expect it: keys without a value left out, the reasoning under each name that is in use."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING if name in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _bounded(pieces: Iterator[str], brought_characters: int) -> str:
    most = PROMPT_CHARACTERS + PROMPT_PER_CHARACTER * brought_characters
    kept: list[str] = []
    for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise BudgetError("it makes too much text")
        kept.append(piece)
    return "".join(kept)


def _verdict(error: Exception) -> str:
    return "refuses" if isinstance(error, TemplateError) else "fails on"


def _line(error: BaseException) -> str:
    """One line of bounded length: the text is the template's own."""
    text = " ".join(str(error)[: 4 * _SENTENCE_CHARACTERS].split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= _SENTENCE_CHARACTERS else text[:_SENTENCE_CHARACTERS] + "..."


def _refused(error: BaseException) -> RefusedTemplateError:
    return RefusedTemplateError(f"The model's chat template is refused: {_line(error)}.")


def _compiled(world: World, source: str) -> Any:
    if len(source) > MAX_CHARACTERS:
        raise RefusedTemplateError(f"The model's chat template is longer than {MAX_CHARACTERS} characters.")
    try:
        tree = world.parse(source)
        _check_size(tree)
        _ClosedWorld(world).visit(tree)
        code = world.compile(tree)
        return world.template_class.from_code(world, code, world.make_globals(None))
    except Exception as error:  # jinja2, and Python's own compiler, on a stranger's text
        raise _refused(error) from error


def _check_size(tree: nodes.Node) -> None:
    count, waiting = 0, [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise BudgetError("it is too large or nested too deep")
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


_DEFINITION_STEPS: Final = 64
"""A loop or a macro makes objects of its own, whatever is in it."""


def _steps(node: nodes.Node) -> int:
    """What one run of the node costs at most, the loops in it counted once."""
    weight = _DEFINITION_STEPS if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)) else 1
    return weight + sum(_steps(child) for child in node.iter_child_nodes())


_KNOWN: Final = frozenset({
    "Template", "Output", "For", "If", "Macro", "CallBlock", "FilterBlock", "With", "AssignBlock", "Assign", "Continue",
    "Break", "Scope", "Name", "NSRef", "Const", "TemplateData", "Tuple", "List", "Dict", "Pair", "Keyword", "CondExpr",
    "Filter", "Test", "Call", "Getitem", "Getattr", "Slice", "Concat", "Compare", "Operand", "Mul", "Div", "FloorDiv",
    "Add", "Sub", "Mod", "Pow", "Not", "Neg", "Pos", "And", "Or",
})  # fmt: skip


class _ClosedWorld(NodeTransformer):
    """Raises BudgetError at what is not known; wraps what jinja2 would otherwise run without asking the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def get_visitor(self, node: nodes.Node) -> Any:
        kind = type(node).__name__
        if kind not in _KNOWN:
            raise BudgetError(f"it uses '{kind}', which VRAMancer does not offer to chat templates")
        return getattr(self, f"lead_{kind.lower()}", None)

    def lead_name(self, node: nodes.Name) -> nodes.Node:
        if node.name == "self":
            raise BudgetError("it reaches for the template itself")
        return node

    def lead_const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int) and abs(node.value) >= MAX_INTEGER:
            raise BudgetError("it computes with huge numbers")
        return node

    def lead_templatedata(self, node: nodes.TemplateData) -> nodes.Node:
        """Plain text becomes a value that is written out: it is paid for each time, also inside a macro."""
        return nodes.Const(node.data, lineno=node.lineno)

    def lead_for(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise BudgetError("it uses a recursive loop")
        steps = _steps(node)
        self.generic_visit(node)
        node.iter = _call(EACH, node.iter, steps)
        return node

    def lead_macro(self, node: nodes.Macro) -> nodes.Node:
        return self._paid_body(node)

    def lead_callblock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._paid_body(node)

    def _paid_body(self, node: Any) -> nodes.Node:
        steps = _steps(node)
        self.generic_visit(node)
        paying = nodes.ExprStmt(_call(WORK, nodes.Const(steps)), lineno=node.lineno)
        node.body.insert(0, paying)
        return node

    def lead_filter(self, node: nodes.Filter) -> nodes.Node:
        return self._offered(node, "filter", self._world.filters)

    def lead_test(self, node: nodes.Test) -> nodes.Node:
        return self._offered(node, "test", self._world.tests)

    def _offered(self, node: Any, kind: str, table: Mapping[str, Any]) -> nodes.Node:
        if node.name not in table:
            raise BudgetError(f"it uses the {kind} '{node.name}', which VRAMancer does not offer to chat templates")
        return self.generic_visit(node)

    def lead_getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        part = node.arg
        return _call(SLICED, node.node, *(bound or nodes.Const(None) for bound in (part.start, part.stop, part.step)))

    def lead_compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call(COMPARED, node.expr)
        for operand in node.ops:
            operand.expr = _call(COMPARED, operand.expr)
        return node

    def lead_tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _call(LITERAL, node)

    def lead_list(self, node: nodes.List) -> nodes.Node:
        return _call(LITERAL, self.generic_visit(node))

    def lead_dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _call(KEY, pair.key)
        return _call(LITERAL, node)

    def lead_concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [nodes.Filter(part, "string", [], [], None, None) for part in node.nodes]
        return node


def _call(name: str, first: nodes.Node, *rest: nodes.Node | int) -> nodes.Filter:
    """A filter under a name that no template can write."""
    arguments = [nodes.Const(part) if isinstance(part, int) else part for part in rest]
    return nodes.Filter(first, name, arguments, [], None, None)
