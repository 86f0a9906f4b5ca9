"""Chat templates for the tests: of the kinds that models bring, written by us, and of kinds that nobody should run."""

from __future__ import annotations

from typing import Any

HEADERS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set opening = messages[0]['content'] | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set opening = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|head|>system<|/head|>\n\n' }}{% if tools is not none %}{{ 'Environment: tools\n' }}{% endif %}"
    "{{ opening ~ '<|eot|>' }}"
    "{%- for message in rest %}"
    "{%- if not (message.role == 'tool' or 'tool_calls' in message) %}"
    "{{ '<|head|>' + message['role'] + '<|/head|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{%- elif 'tool_calls' in message %}"
    "{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{%- set call = message.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{ call.arguments | tojson }}{{ '}<|eot|>' }}"
    "{%- else %}{{ '<|head|>tool<|/head|>\n\n' }}"
    "{%- if message.content is mapping or message.content is iterable and message.content is not string %}"
    "{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}{{ '<|eot|>' }}{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
"""As the third Llamas speak: role headers, a system part of its own, tools as JSON."""

MARKED_TURNS = """
{%- if tools %}
    {{- '<|turn|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nCall one or more.\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|over|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|turn|>system\\n' + messages[0].content + '<|over|>\\n' }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and message.content is string
        and not (message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.looking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|turn|>' + message.role + '\\n' + content + '<|over|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|turn|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- '<|turn|>assistant\\n' + content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}
            {{- call.arguments | tojson(indent=2) | safe }}{%- endif %}{{- '}\\n</call>' }}
        {%- endfor %}
        {{- '<|over|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|turn|>user' }}{%- endif %}
        {{- '\\n<result>\\n' }}{{- content }}{{- '\\n</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|over|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
"""As the Qwens speak: tools in the system part, thoughts of earlier turns left out, a namespace, a reversed walk."""

MODEL_TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must take turns: user, assistant, user, ...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '</turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\\n' }}{%- endif -%}
"""
"""As the Gemmas speak: turns that alternate, no system role of its own, content in parts."""

EVERYTHING = """{% macro quoted(value, mark='"') %}{{ mark }}{{ value }}{{ mark }}{% endmacro %}
{% macro listed(values) %}{% for v in values %}{{ caller(v) }}{% if not loop.last %}, {% endif %}{% endfor %}
{%- endmacro %}
{%- call(v) listed(['a', 'b', 'c']) %}[{{ v|upper }}]{% endcall %}
{% for key, value in {'b': 1, 'a': [1.5, true, none, 'é"\\n']}|dictsort %}{{ key }}={{ value|tojson }};{% endfor %}
{% for m in messages if m.role in ['user', 'tool'] %}{{ loop.index }}/{{ loop.length }} {{ quoted(m.role) }}
{% if loop.index > 2 %}{% break %}{% else %}{% continue %}{% endif %}never{% else %}nobody{% endfor %}
{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{ messages|rejectattr('content', 'undefined')|map(attribute='role')|unique|list }} {{ [3, 1, 2]|sort|string }}
{{ 'one two'|title }} {{ 'a-b-c'.split('-')|reverse|join('+') }} {{ '%s has %d'|format('x', 3) }} {{ '%.2f' % 1.5 }}
{{ '{} and {b:>4}'.format(1, b='z') }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ -3|abs }} {{ 3.7|int }}
{{ 'x' * 3 ~ 1 ~ none }} {{ 1 if false }} {{ missing is defined }} {{ missing|default('gone') }} {{ 'b' in 'abc' }}
{% set block %}a {{ 1 + 1 }} b{% endset %}{{ block|replace('a', 'c') }}
{% set shout | upper %}quiet{% endset %}{{ shout }}
{% filter indent(2) %}first
second{% endfilter %} {% with x = 3, y = [1, 2] %}{{ x in y }}{{ y[-1] }}{{ (x, y)|last|first }}{% endwith %}
{{ dict(a=1, **{'b': 2}).items()|list }} {{ {'a': 1}.get('z', 'no') }} {{ range(2, 8, 3)|list }} {{ 'é<&>'|e }}
{{ '<i>'|safe + '<b>' }} {{ ['b', 'A']|sort(case_sensitive=true) }} {{ 'abc'[::-1] }} {{ 'abc'|first }}{{ [1,2]|max }}
{% generation %}inside{% endgeneration %} {{ 4.567|round(1) }} {{ 5 is odd }}
{{ {'k': {'z': 1, 'a': 2}}|tojson(indent=2, sort_keys=true) }}
{{ loop is defined }} {% raw %}{{ raw }}{% endraw %} {{ '  s '.strip() ~ '|' ~ ' x'.lstrip() }} {{ bos_token.upper() }}
"""
"""What templates are written with, once each."""

FAMILIES = {"headers": HEADERS, "marked-turns": MARKED_TURNS, "model-turns": MODEL_TURNS, "everything": EVERYTHING}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather, also in Zürich <&> 東京.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]

ROUNDS: dict[str, list[dict[str, Any]]] = {
    "hello": [{"role": "user", "content": "Hello"}],
    "long": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "  What is 1 < 2 & 3?\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue."},
        {"role": "user", "content": "Naïve — 漢字 🙂"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "I should ask.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1.5}}}],
        },
        {"role": "tool", "content": "sunny"},
    ],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " see "}]}],
}

_TWICE = "{% set x = [1] %}" + "{% set x = [x, x] %}" * 50
_PAIRS = "{% set x = (1,) %}" + "{% set x = (x, x) %}" * 50

_NAMESPACE = "{% set ns = namespace(x=[]) %}"
_MANY = "{% for i in range(10**5) %}{% for j in range(10**5) %}"

RUNS_AWAY: dict[str, str] = {
    "nested loops": "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(10**5) %}{% for b in range(10**5) if b is eq 'x' %}{% endfor %}{% endfor %}",
    "long body": "{% for a in range(10**5) %}" + "{% set y = a %}" * 900 + "{% endfor %}",
    "macro recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "call recursion": "{% macro a(n) %}{{ caller() }}{% if n %}{% call a(n-1) %}{% endcall %}"
    "{% call a(n-1) %}{% endcall %}{% endif %}{% endmacro %}{% call a(20) %}{% endcall %}",
    "map by name": "{% for a in range(10**5) %}{% set y = range(10**5)|map('string')|list %}{% endfor %}",
    "reject by name": "{% for a in range(10**5) %}{% set y = range(10**5)|reject('number') %}{% endfor %}",
    "long text": "{{ 'a' * 10**10 }}",
    "long list": "{% set y = [1] * 10**10 %}",
    "text of texts": "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "added texts": "{% set x = 'aaaaaaaa' %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
    "blocks of blocks": "{% set x = 'aaaaaaaa' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "replace": "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "replace method": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace nothing": "{{ ('a' * 10**6)|replace('', 'b' * 10**6) }}",
    "join": "{{ range(10**5)|list|join('x' * 10**6) }}",
    "join method": "{{ ('x' * 10**6).join(['a'] * 10**5) }}",
    "indent": "{{ 'x\ny'|indent(10**10) }}",
    "indent of lines": "{{ ('\n' * 10**6)|indent(10**5) }}",
    "json indent": "{{ {'a': [1]}|tojson(indent=10**10) }}",
    "json separators": "{{ ([1] * 10**3)|tojson(separators=['x' * 10**6, 'y']) }}",
    "printf": "{{ '%10000000000d' % 1 }}",
    "printf star": "{{ '%*d' % (10**9, 1) }}",
    "printf filter": "{{ '%10000000000d'|format(1) }}",
    "printf repeats": "{{ ('%(a)s' * 10**5)|format(a='x' * 10**6) }}",
    "format method": "{{ '{:>10000000000}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format('a', '10000000000') }}",
    "format repeats": "{{ ('{0}' * 10**5).format('x' * 10**6) }}",
    "strip": "{{ ('a' * 10**6).strip('b' * 10**6 + 'a') }}",
    "trim": "{{ ('a' * 10**6)|trim('b' * 10**6 + 'a') }}",
    "split": "{% for i in range(1000) %}{% set y = ('ab ' * 10**5).split() %}{% endfor %}",
    "split once": "{% set y = ('ab ' * (5 * 10**6)).split() %}",
    "split by": "{% set y = ('ab ' * (5 * 10**6)).split(sep=' ') %}",
    "lines": "{% set y = ('ab\n' * (5 * 10**6)).splitlines() %}",
    "slices kept": "{% set s = 'a' * 10**6 %}{% set y = [" + "s[1:], " * 900 + "] %}",
    "macro text": "{% macro m() %}"
    + "x" * 100_000
    + "{% endmacro %}{% for i in range(10**5) %}{% set y = m() %}{% endfor %}",
    "loop in a macro": "{% macro m() %}{% for i in range(10**4) %}"
    + "x" * 100_000
    + "{% endfor %}{% endmacro %}{% set y = m() %}",
    "loop in a block": "{% set y %}{% for i in range(10**4) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "loop text": "{% for i in range(10**5) %}" + "x" * 100_000 + "{% endfor %}",
    "printed doubles": _TWICE + "{{ x }}",
    "compared doubles": _TWICE + _TWICE.replace("x", "y") + "{{ x == y }}",
    "found doubles": _TWICE + _TWICE.replace("x", "y") + "{{ x in [y] }}",
    "tested doubles": _TWICE + _TWICE.replace("x", "y") + "{{ x is eq y }}",
    "json doubles": _TWICE + "{{ x|tojson }}",
    "lower doubles": _TWICE + "{{ x|lower }}",
    "safe doubles": _TWICE + "{{ x|safe }}",
    "joined doubles": _TWICE + "{{ [x]|join }}",
    "method doubles": _TWICE + "{{ '{}'.format(x) }}",
    "printf doubles": _TWICE + "{{ '%s' % x }}",
    "hashed pairs": _PAIRS + "{{ {}[x] }}",
    "hashed get": _PAIRS + "{{ {}.get(x) }}",
    "hashed key": _PAIRS + "{{ {x: 1} }}",
    "repr doubles": _TWICE + "{{ '{!r}'.format(x) }}",
    "named doubles": _TWICE + "{{ [1]|selectattr('a', x)|list }}",
    "undefined doubles": _TWICE + "{{ true[x] + 1 }}",
    "unique pairs": _PAIRS + "{{ [x]|unique|list }}",
    "deep": _NAMESPACE + "{% for i in range(10**4) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
    "kept lists": _NAMESPACE + _MANY + "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}",
    "kept loops": _NAMESPACE + _MANY + "{% for a in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}{% endfor %}",
    "kept macros": _NAMESPACE
    + _MANY
    + "{% set p = ns.x %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.x = m %}{% endfor %}{% endfor %}",
    "kept namespaces": _NAMESPACE + _MANY + "{% set ns.x = namespace(x=ns.x) %}{% endfor %}{% endfor %}",
    "kept dicts": _NAMESPACE + _MANY + "{% set ns.x = {'a': ns.x} %}{% endfor %}{% endfor %}",
    "round": "{{ 5|round(-10**9) }}",
    "round up": "{{ 5.5|round(10**9, 'ceil') }}",
    "power": "{{ 2 ** (10**12) }}",
    "product": "{% set x = 2**60 %}" + "{% set x = x * x %}" * 60,
    "literal": "{{ 0x" + "f" * 1000 + " }}",
    "whole number": "{{ '" + "9" * 1000 + "'|int }}",
    "date": "{{ strftime_now('%A' * 10**6) }}",
}
"""Each asks for hours or for gigabytes."""

REACHES_OUT: dict[str, str] = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "item": "{{ ''['__class__']['__base__'] }}",
    "globals": "{{ cycler.__init__.__globals__.os.system(MARK) }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "macro inside": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "function": "{{ raise_exception.__globals__.os }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "namespace names": "{{ namespace(__class__=1) }}",
    "namespace set": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "loop": "{% for i in [1] %}{{ loop._iterator.__class__.__name__ }}{% endfor %}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format item": "{{ '{0[__class__]}'.format('') }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "template itself": "{{ self.__init__.__globals__ }}",
    "generator": "{{ (messages|map('list')).gi_frame.f_globals }}",
    "changes": "{{ messages.append(1) }}",
    "changes a dict": "{{ messages[0].update({'a': 1}) }}",
    "to bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape true %}{{ 1 }}{% endautoescape %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "inner filter": "{{ [1]|map('#each', -1)|list }}",
    "center": "{{ 'x'|center(10**10) }}",
    "batch": "{{ [1]|batch(10**10, 'x')|list }}",
    "wordwrap": "{{ ('a' * 10**6)|wordwrap(1) }}",
}
"""Each wants what no conversation needs."""
