"""Random chat templates of every operation that templates have. As a program: `python -m tests.helpers.template_fuzz`.

Runs each under the process's hard limits on memory and time, prints how many rendered, were refused and failed.
Arguments: seed, count.
"""

from __future__ import annotations

import random
import resource
import sys
from collections import Counter
from pathlib import Path

from tests.helpers import chat_templates
from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.serving.template import ChatTemplate, RefusedTemplateError
from vramancer_cli.serving.template_filters import _FILTERS, _TESTS
from vramancer_cli.serving.template_methods import _METHODS

NAMES = ["messages", "big", "text", "many", "twice", "tup", "ns", "loop", "m", "range", "dict", "namespace", "nobody"]
NUMBERS = ["1", "-1", "0", "10**9", "10**18", "1.5", "1e308"]
VALUES = [*NUMBERS, "''", "'a'", "'%s'", "'%9d'", "'{}'", "none", "true", "[]", "{}", "(1,)"]
METHODS = sorted({name for table in _METHODS.values() for name in table} | {"append", "__class__", "encode", "zfill"})
FILTERS = [*sorted(_FILTERS), "tojson"]
TESTS = sorted(name for name in _TESTS if name.isalpha())
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
LITERALS = ["[%s, %s]", "(%s, %s)", "{'a': %s, 'b': %s}", "m(%s, %s)", "dict(a=%s, b=%s)"]
BY_NAME = ["map", "select", "reject", "selectattr", "rejectattr"]
OPENING = (
    "{% macro m(x, y=1) %}{{ x }}{{ y }}{% endmacro %}{% set ns = namespace(a=[]) %}{% set big = 'ab c\\n' * 100000 %}"
    "{% set text = 'a b' %}{% set many = range(3000)|list %}{% set twice = [[1], 'a'] %}{% set tup = (1,) %}"
    + "{% set twice = [twice, twice] %}{% set tup = (tup, tup) %}"
    * 30
)


def expression(rng: random.Random, depth: int) -> str:
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice(NAMES + VALUES)
    one, two = expression(rng, depth - 1), expression(rng, depth - 1)
    forms = [
        f"({one} {rng.choice(OPERATORS)} {two})",
        f"({one}|{rng.choice(FILTERS)}({arguments(rng, depth)}))",
        f"({one} is {rng.choice(TESTS)}({two}))",
        f"({one}).{rng.choice(METHODS)}({arguments(rng, depth)})",
        f"({one})[{rng.choice([two, f'{two}:', '::-1'])}]",
        rng.choice(LITERALS) % (one, two),
        f"({one}|{rng.choice(BY_NAME)}('{rng.choice(FILTERS + TESTS)}', {two})|list)",
    ]
    return rng.choices(forms, weights=[2, 3, 1, 3, 1, 2, 1])[0]


def arguments(rng: random.Random, depth: int) -> str:
    names = [""] * 40 + ["indent=", "attribute=", "precision=", "count="]
    return ", ".join(rng.choice(names) + expression(rng, depth - 1) for _ in range(rng.choice((0, 0, 0, 1, 1, 2))))


def statement(rng: random.Random, depth: int) -> str:
    value = expression(rng, rng.choice((1, 2, 2, 3)))
    if not depth:
        return "{{ " + value + " }}"
    inner = statement(rng, depth - 1)
    return rng.choice(
        [
            "{{ " + value + " }}",
            "{% for item in " + value + " %}" + inner + "{% endfor %}",
            "{% set ns.a = " + value + " %}" + inner,
            "{% set text %}" + inner + "{% endset %}",
            "{% call m(" + value + ") %}" + inner + "{% endcall %}",
        ]
    )


def outcome(source: str) -> str:
    try:
        ChatTemplate(OPENING + source).render(chat_templates.ROUNDS["long"], {})
        return "rendered"
    except (RefusedTemplateError, InvalidRequestError) as error:
        assert not isinstance(error.__cause__, MemoryError), source
        return "refused" if isinstance(error, RefusedTemplateError) else "failed"


def main(seed: int, count: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (600 << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (count, count))
    rng, outcomes = random.Random(seed), Counter[str]()
    for _ in range(count):
        source = statement(rng, rng.randint(0, 2))
        print(source, file=sys.stderr, flush=True)  # the last one is the culprit if a limit ends this process
        outcomes[outcome(source)] += 1
    print(" ".join(f"{name} {times}" for name, times in sorted(outcomes.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
