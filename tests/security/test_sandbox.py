"""Templates and expressions cannot eat the process: neither its time nor its memory, nor anything within reach."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from bridge.errors import ExpressionFailure
from bridge.expressions.expression import ExpressionSyntaxError, compile_expression
from bridge.expressions.template import TemplateSyntaxError, compile_template

CONTEXT = {"event": {"a": 2.5, "s": "a" * 40_000, "l": ["a", "b"] * 2_000, "n": 10**9}}
HUGE = (
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * 'x' }}",
    "{{ event.s * event.n }}",
    "{{ event.l * event.n }}",
    "{{ event.s|upper * event.n }}",
    "{{ '}}' * 1000000000 ~ '}}' }}",
    "{# '* #}{{ 'x' * 1000000000 }}",
    "{{ ('{' * 1000000000)|length }}",
    "{% set x = 'a' * 1000000000 %}{{ x }}",
    "{% if 'a' * 1000000000 %}{% endif %}",
    "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('x', 40) }}",
    "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% for i in range(100000) %}{{ event.s }}{% endfor %}",
    "{{ event.s|replace('a', event.s) }}",
    "{{ event.l|join(event.s) }}",
    "{{ event.s|indent(1000000000) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ [1]|batch(1000000000, 'x') }}",
    "{{ [1]|slice(1000000000)|list }}",
    "{{ event|tojson(indent=1000000000) }}",
    "{{ range(1000000000)|list }}",
)


def _peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.security(17)
@pytest.mark.parametrize("source", HUGE)
def test_a_template_that_would_make_a_huge_text_fails_instead(source: str) -> None:
    def refused() -> None:
        with pytest.raises((ExpressionFailure, TemplateSyntaxError)):
            compile_template(source).render(CONTEXT)

    assert _peak(refused) < 20 << 20


@pytest.mark.security(17)
@pytest.mark.parametrize(
    "source",
    [
        "('x' * 300000000)|length",
        "($event.s|upper * 300000)|length",
        "$event.s|indent(300000000)",
        "[1]|batch(3)",
    ],
)
def test_an_expression_that_would_make_a_huge_text_fails_instead(source: str) -> None:
    with pytest.raises((ExpressionFailure, ExpressionSyntaxError)):
        compile_expression(source).evaluate(CONTEXT)


@pytest.mark.security(17)
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ event.a * 100 }} %", "250.0 %"),
        ("{{ 2 * 3 + 2 ** 3 * 2 }}", "22"),
        ("{{ -3 * -2 }}", "6"),
        ('*{{ "it\'s }} * 3" }}*', "*it's }} * 3*"),
        ("{% raw %}{{ 'x' * 3 }}{% endraw %}", "{{ 'x' * 3 }}"),
        ("{%- if event.a * 2 > 4 -%} y {%- endif %}", "y"),
        ("{% for i in [1, 2] %}{{ i * 2 }},{% endfor %}", "2,4,"),
        ("{{ [1, true, 'x']|join(', ') }}", "1, True, x"),
        ("{{ 'a-b'|replace('-', '+') }}", "a+b"),
    ],
)
def test_what_a_message_needs_stays(source: str, text: str) -> None:
    shown = compile_template(source).render(CONTEXT)
    assert shown in (text, text.replace("250.0", "250"))


@pytest.mark.security(17)
@pytest.mark.parametrize(
    "source",
    [
        "{{ event.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ event.s.__init__.__globals__ }}",
        "{{ self }}",
    ],
)
def test_nothing_of_the_process_is_within_reach(source: str) -> None:
    with pytest.raises((ExpressionFailure, TemplateSyntaxError)):
        compile_template(source).render(CONTEXT)


@pytest.mark.security(17)
def test_a_loop_runs_out_of_fuel() -> None:
    source = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ExpressionFailure, match="it takes too long"):
        compile_template(source).render(CONTEXT)
