"""Chat templates of strangers: real ones render as transformers renders them, hostile ones cost next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.chat_templates import FAMILIES, REACHES_OUT, ROUNDS, RUNS_AWAY, TOOLS
from tests.helpers.checkpoints import make_tokenizer
from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.serving import template
from vramancer_cli.serving.template import ChatTemplate, RefusedTemplateError

HELLO = ROUNDS["hello"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def as_transformers(tokenizer: Any, source: str, messages: Any, tools: Any) -> str | None:
    """None: the template refuses them."""
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=source, add_generation_prompt=True, tokenize=False
        )
    except Exception:
        return None


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "with-tools"])
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("family", [*FAMILIES, "built-in"])
def test_templates_render_as_transformers_renders_them(tokenizer: Any, family: str, rounds: str, tools: Any) -> None:
    source = FAMILIES.get(family) or (builtin_folder() / "chat_template.jinja").read_text()
    expected = as_transformers(tokenizer, source, ROUNDS[rounds], tools)
    chat = ChatTemplate(source)
    if expected is None:
        with pytest.raises(InvalidRequestError):
            chat.render(ROUNDS[rounds], tokenizer.special_tokens_map, tools)
    else:
        assert chat.render(ROUNDS[rounds], tokenizer.special_tokens_map, tools) == expected


def test_each_family_renders_something(tokenizer: Any) -> None:
    """Else the test above would compare refusals."""
    for source in FAMILIES.values():
        assert len(as_transformers(tokenizer, source, HELLO, None) or "") > 20


def test_a_long_conversation_is_rendered(tokenizer: Any) -> None:
    turns = [{"role": ("user", "assistant")[turn % 2], "content": f"{turn} " * 150} for turn in range(2001)]
    for name in ("headers", "marked-turns", "model-turns"):
        expected = as_transformers(tokenizer, FAMILIES[name], turns, TOOLS)
        assert ChatTemplate(FAMILIES[name]).render(turns, tokenizer.special_tokens_map, TOOLS) == expected


LIMITED = """
import resource, sys
from tests.helpers import chat_templates
from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.serving.template import ChatTemplate, RefusedTemplateError
page = resource.getpagesize()
now = int(open("/proc/self/statm").read().split()[0]) * page
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
for name, source in getattr(chat_templates, sys.argv[1]).items():
    try:
        ChatTemplate(source).render(chat_templates.ROUNDS["hello"], {})
        print(name, "rendered", sep=": ")
    except RefusedTemplateError as error:
        assert not isinstance(error.__cause__, MemoryError), name
        print(name, "refused", sep=": ")
    except InvalidRequestError as error:
        assert not isinstance(error.__cause__, MemoryError), name
        print(name, "failed", sep=": ")
    sys.stdout.flush()
"""


def limited(table: str) -> dict[str, str]:
    """What becomes of each template in one process that may grow by 200 MiB and compute for 100 s, all together."""
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, table], capture_output=True, text=True, timeout=300, cwd=Path.cwd()
    )
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr[-3000:]
    return dict(line.split(": ") for line in ran.stdout.splitlines())


def test_what_runs_away_is_refused_in_bounded_time_and_memory() -> None:
    assert limited("RUNS_AWAY") == dict.fromkeys(RUNS_AWAY, "refused")


def test_nothing_that_reaches_out_of_its_world_is_rendered() -> None:
    outcomes = limited("REACHES_OUT")
    assert outcomes.keys() == REACHES_OUT.keys()
    assert [name for name, outcome in outcomes.items() if outcome == "rendered"] == []


LITERALS = "{% set ns.x = [ns.x, " + "[], " * 200 + "] %}"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ ''|attr('x') }}", "uses the filter 'attr'"),
        ("{{ 1 is filter }}", "uses the test 'filter'"),
        ("{{ self }}", "reaches for the template itself"),
        ("{% include 'x' %}", "uses 'Include'"),
        ("{% for a in [1] recursive %}{% endfor %}", "recursive loop"),
        ("{{ (1).to_bytes }}", "'to_bytes' of a int is not offered"),
        ("{{ messages() }}", "a list cannot be called"),
        ("{{ [1]|map('#each', 1)|list }}", "names a filter or test"),
        ("{{ '{0.x}'.format(1) }}", "reaches into an object"),
        ("{{ strftime_now('%A' * 1000) }}", "date of no known form"),
        ("{{ namespace }}", "writes out a Method"),
        ("{{ namespace(_x=1) }}", "begins with an underscore"),
        ("{% set ns = namespace(x=1) %}{% for i in range(2000) %}" + LITERALS + "{% endfor %}", "too much text"),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(100) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
            "too deep",
        ),
    ],
)
def test_a_refusal_says_why(source: str, why: str) -> None:
    with pytest.raises(RefusedTemplateError, match="is refused: ") as refused:
        ChatTemplate(source)
    assert why in str(refused.value)


def test_a_template_of_a_megabyte_is_refused_unread() -> None:
    with pytest.raises(RefusedTemplateError, match="longer than"):
        ChatTemplate("x" * (1 << 20))


@pytest.mark.parametrize(
    "source", ["{{ a }}" * 8000, "{{" + "(" * 3000 + ")" * 3000 + "}}", "{{ " + "1+" * 3000 + "1 }}", "{% if %}"]
)
def test_a_template_that_is_too_much_to_compile_is_refused(source: str) -> None:
    with pytest.raises(RefusedTemplateError):
        ChatTemplate(source)


def test_a_refusal_is_one_line_of_bounded_length() -> None:
    for source in ("{{ raise_exception('no\n' * 100000) }}", "{% " + "x" * 5000 + " %}", "{{ x|" + "y" * 5000 + " }}"):
        try:
            ChatTemplate(source).render(HELLO, {})
        except (InvalidRequestError, RefusedTemplateError) as error:
            assert len(str(error)) < 500 and "\n" not in str(error)
        else:
            pytest.fail("not refused")


def test_a_template_that_only_runs_away_with_some_messages_is_refused_for_those() -> None:
    chat = ChatTemplate("{% if messages|length > 1 %}{{ 'a' * 10**10 }}{% endif %}{{ messages[0].content }}")
    assert chat.render(HELLO, {}) == "Hello"
    with pytest.raises(RefusedTemplateError, match="too much text"):
        chat.render([*HELLO, *HELLO], {})
    assert chat.render(HELLO, {}) == "Hello"


def test_a_prompt_may_not_be_far_longer_than_what_was_asked() -> None:
    """What is written out once is still for the tokenizer to read."""
    chat = ChatTemplate("{{ messages[0].content * (1 if messages|length == 1 else 12) }}")
    most = template.PROMPT_CHARACTERS
    message = {"role": "user", "content": "a" * most}
    assert len(chat.render([message], {})) == most
    with pytest.raises(RefusedTemplateError, match="too much text"):
        chat.render([message, *HELLO], {})


def test_a_rendering_does_not_use_up_the_next_ones_budget() -> None:
    chat = ChatTemplate("{% for i in range(30000) %}{{ i }}{% endfor %}")
    assert len({chat.render(HELLO, {}) for _ in range(4)}) == 1


def test_messages_are_not_changed_by_a_template() -> None:
    messages = [{"role": "user", "content": "a", "tool_calls": None}]
    assert ChatTemplate("{% for m in messages %}{{ m.keys()|list }}{% endfor %}").render(messages, {}) == (
        "['role', 'content']"
    )
    assert messages == [{"role": "user", "content": "a", "tool_calls": None}]


def test_no_template_of_random_operations_runs_away() -> None:
    """Programs of every operation that templates have, on long, many and doubled values, under hard limits."""
    command = [sys.executable, "-m", "tests.helpers.template_fuzz", "7", "100"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split()[::2] == ["failed", "refused", "rendered"]
