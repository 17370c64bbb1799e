"""Expressions: what they read, what they answer, and that our operators agree with the engine's."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from minijinja import Environment, TemplateError

from bridge.errors import ExpressionFailure
from bridge.expressions.expression import ExpressionSyntaxError, compile_expression
from bridge.expressions.template import Template, TemplateSyntaxError, compile_template
from bridge.planning.rows import Literal, Rows, Structure, classify
from tests.unit.pipeline.samples import event

ENGINE = Environment(undefined_behavior="strict", debug=False)
EVENT: dict[str, Any] = {
    "used": 95210,
    "limit": 100000,
    "metric": "api-calls",
    "nothing": None,
    "no": False,
    "text": "95",
    "price": Decimal("0.9"),
    "tags": ["a", "b"],
    "items": [{"sku": "x"}],
    "user": {"id": 7, "first name": "Ada"},
}


def value(source: str, **roots: Any) -> Any:
    return compile_expression(source).evaluate({"event": EVENT, **roots})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("$event.used", 95210),
        ("$event.user.id", 7),
        ("$event.user['first name']", "Ada"),
        ("$event.items[0].sku", "x"),
        ("$event.tags[-1]", "b"),
        ("$event.absent", None),
        ("$event.absent.deeper", None),
        ("$event.used / $event.limit", 0.9521),
        ("$event.used > 0", True),
        ("$event.used >= $event.limit", False),
        ("$event.metric in ['api-calls', \"storage\"] and $ratio >= 0.9", True),
        ("$event.metric not in ['seats']", True),
        ("'api' in $event.metric", True),
        ("not $event.no", True),
        ("$event.price >= 0.9", True),
        ("$event.price == 0.9", True),
        ("$event.price in [0.9]", True),
        ("$event.absent is defined and $event.absent > 1", False),
        ("$event.absent|default(3) > 2", True),
        ("$event.nothing is none", True),
        ("$event.nothing == none", True),
        ("$event.nothing|default(3, true) + 1", 4),
        ("$event.metric|upper", "API-CALLS"),
        ("$event.metric.upper() == 'API-CALLS'", True),
        ("$event.metric ~ ':' ~ $event.used", "api-calls:95210"),
        ("$event.tags|length > 1", True),
        ("$event.used % 10 == 0", True),
        ("$event.used // 1000", 95),
        ("-$event.used + 10", -95200),
        ("2 ** 3", 8),
        ("'high' if $event.used > 9 else 'low'", "high"),
        ("1 < $event.used < 100000", True),
        ("'a $event.used b'", "a $event.used b"),
        ("$event['used'] == 95210", True),
        ("{'n': $event.used}", {"n": 95210}),
        ("[$event.used, 1]", [95210, 1]),
        ("$day < '2027-06-01'", True),
        ("$day == '2027-03-01'", True),
        ("$day.strftime('%Y')", "2027"),
        ("$at > '2027-01-01T00:00:00+00:00'", True),
        ("true", True),
    ],
)
def test_an_expression_has_this_value(source: str, expected: Any) -> None:
    found = value(source, ratio=0.9521, day=date(2027, 3, 1), at=datetime(2027, 3, 1, tzinfo=UTC))
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("$event.text >= 0.9", "$event.text and 0.9: a string and a number have no order"),
        ("$event.absent > 1", "$event.absent is missing"),
        ("not $event.absent", "$event.absent is missing"),
        ("$event.nothing < 1", "$event.nothing and 1: null and a number have no order"),
        ("$event.used / 0", "$event.used and 0: division by zero"),
        ("$event.used / 0.0", "$event.used and 0.0: division by zero"),
        ("$event.text / 2", "$event.text and 2: a string cannot be divided by a number"),
        ("$event.used + $event.text", "$event.used and $event.text: a string cannot be added to a number"),
        ("$event.no + 1", "$event.no and 1: a number cannot be added to a boolean"),
        ("$event.used % 0", "the operation has no result for these kinds of values"),
        ("$event.absent|upper == 'X'", "a field is missing"),
        ("1 in $event.nothing", "1 and $event.nothing: a number cannot be looked for in null"),
        ("$event.used * 1e300 * 1e300", "$event.used * 1e300 and 1e300: too large for float64"),
        ("range($event.used * 1000)|length > 0", "the operation has no result for these kinds of values"),
    ],
)  # fmt: skip
def test_an_expression_without_an_answer_names_itself_and_the_field(source: str, why: str) -> None:
    with pytest.raises(ExpressionFailure) as caught:
        value(source)
    assert caught.value.cause == f"expression {source!r}: {why}"


@pytest.mark.parametrize(
    ("source", "offset"),
    [
        ("event.used > 1", 0),
        ("$event.used >", 13),
        ("$event.used & 1", 12),
        ("$$event > 1", 0),
        ("$event.used|nosuchfilter", 0),
        ("$event.used is nosuchtest", 0),
        ("nosuchfunction($event.used)", 0),
        ("($event.used", 12),
        ("[1, 2", 5),
        ("$event.a b", 9),
        ("", 0),
        ("'open", 0),
    ],
)
def test_a_wrong_expression_is_refused_where_it_is_wrong(source: str, offset: int) -> None:
    with pytest.raises(ExpressionSyntaxError) as caught:
        compile_expression(source)
    assert caught.value.offset == offset


def test_names_and_plain_paths_are_known_without_running() -> None:
    ratio = compile_expression("$event.used / $event.limit >= $share.x|default('$event.no')")
    assert ratio.names == {"event.used", "event.limit", "share.x"}
    assert ratio.plain_path is None
    assert compile_expression(" $event.user['first name'] ").plain_path == ("event", "user", "first name")


def test_division_is_float64_whatever_comes_in() -> None:
    quotient = compile_expression("$event.a / $event.b")
    for a, b in ((4, 2), (Decimal(4), 2), (Decimal("4.0"), Decimal(2)), (4.0, 2)):
        result = quotient.evaluate({"event": {"a": a, "b": b}})
        assert (result, type(result)) == (2.0, float)


def test_runaway_work_is_stopped() -> None:
    template = compile_template("{% for i in range(99999) %}{{ i }}{% endfor %}")
    with pytest.raises(ExpressionFailure, match="too long"):
        template.render({})


# -- agreement with the engine

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3),
    st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3),
)
documents = st.dictionaries(st.sampled_from("abc"), scalars, max_size=3)
leaves = st.sampled_from(
    ["$event.a", "$event.b", "$event.c", "0", "1", "2.5", "'x'", "''", "true", "none", "[0, 1, 'x']"]
)


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(
        ["and", "or", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "+", "-", "*", "/", "~", "%"]
    )
    return st.one_of(
        st.tuples(inner, operators, inner).map(" ".join),
        inner.map("not {}".format),
        inner.map("({})".format),
        inner.map("-{}".format),
        inner.map("{} is defined".format),
        inner.map("({}) is none".format),
        inner.map("({})|default(1)".format),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]}) if ({t[1]}) else ({t[2]})"),
    )


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, Decimal):
        ours = float(ours)
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return bool(abs(ours - theirs) <= 1e-9 * max(1.0, abs(ours)))
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    return bool(ours == theirs)


@settings(max_examples=600)
@given(st.recursive(leaves, _combine, max_leaves=5), documents)
def test_where_we_answer_the_engine_answers_the_same(source: str, document: dict[str, Any]) -> None:
    """We refuse more (orders of mixed kinds, sums with booleans); we never answer otherwise."""
    try:
        expression = compile_expression(source)
    except ExpressionSyntaxError:
        with pytest.raises(TemplateError):
            ENGINE.eval_expr(source.replace("$", ""), event=document)
        return
    try:
        ours = expression.evaluate({"event": document})
    except ExpressionFailure:
        return
    try:
        theirs = ENGINE.eval_expr(source.replace("$", ""), event=document)
    except TemplateError:
        assume(False)
    assert _alike(ours, theirs), (source, document, ours, theirs)


@settings(max_examples=200)
@given(st.sampled_from(["<", "<=", ">", ">=", "+", "-", "*", "/"]), scalars, scalars)
def test_we_refuse_only_what_has_no_sensible_answer(operator: str, a: Any, b: Any) -> None:
    numbers = (int, float, Decimal)
    kinds = {bool if isinstance(v, bool) else float if isinstance(v, numbers) else type(v) for v in (a, b)}
    sensible = kinds == {float} or (kinds == {str} and operator in ("<", "<=", ">", ">=", "+"))
    try:
        compile_expression(f"$a {operator} $b").evaluate({"a": a, "b": b})
        answered = True
    except ExpressionFailure as failure:
        answered = "division by zero" in failure.cause or "too large" in failure.cause
    assert answered == sensible


# -- values that are not expressions


def test_a_value_is_what_its_first_letters_say() -> None:
    assert classify("$event.a").source == "$event.a"  # type: ignore[union-attr]
    assert classify("$$event.a") == Literal("$event.a")
    assert classify("$5 off") == Literal("$5 off")
    assert classify(5) == Literal(5)
    assert isinstance(classify("hi {{ event.a }}"), Template)
    assert isinstance(classify({"a": ["$event.a"]}), Structure)
    assert classify({"a": [1]}) == Literal({"a": [1]})


def test_a_template_prints_for_people() -> None:
    context = {"event": {"n": None, "t": True}, "c": {"mrr": Decimal("1490.00"), "day": date(2027, 3, 1)}}
    template = compile_template("{{ c.mrr }}|{{ event.n }}|{{ c.day }}|{{ event.t }}")
    assert template.names == {"c.mrr", "event.n", "c.day", "event.t"}
    assert template.render(context) == "1490||2027-03-01|True"


def test_a_template_with_a_name_that_is_not_there_fails_without_values() -> None:
    with pytest.raises(ExpressionFailure) as caught:
        compile_template("{{ event.n }} {{ event.m }}").render({"event": {"n": "canary"}})
    assert caught.value.cause == "template '{{ event.n }} {{ event.m }}' (line 1): a field is missing"
    with pytest.raises(TemplateSyntaxError):
        compile_template("{{ event.n ")


# -- the same over whole lists

fields = st.sampled_from(
    [
        st.integers(-5, 5),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["x", "y", "", "10"]),
        st.booleans(),
        scalars,
    ]
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Documents whose fields mostly keep their kind, as those of one producer do."""
    kinds = {name: draw(fields) for name in "abc"}
    return draw(st.lists(st.fixed_dictionaries(kinds), min_size=1, max_size=5))


@settings(max_examples=500)
@given(st.recursive(leaves, _combine, max_leaves=5), tables())
@example("$event.c + $event.c", [{"a": 0, "b": 0, "c": 8.98846567431158e307}])
def test_over_lists_an_expression_answers_as_event_by_event(source: str, table: list[dict[str, Any]]) -> None:
    try:
        expression = compile_expression(source)
    except ExpressionSyntaxError:
        return
    rows = Rows(list(range(len(table))), [event({})] * len(table), table)
    try:
        one_by_one = [expression.evaluate({"event": document}) for document in table]
    except ExpressionFailure:
        with pytest.raises(ExpressionFailure):
            rows.evaluate(expression)
        return
    together = rows.evaluate(expression)
    assert [(type(v), v) for v in together] == [(type(v), v) for v in one_by_one]


def test_the_usual_conditions_have_a_form_over_lists() -> None:
    for source in (
        "$event.used > 0",
        "$event.used / $event.limit",
        "$event.metric in ['api-calls', 'storage'] and $ratio >= 0.9",
        "not ($event.plan == 'free') or $event.used - 1 < $event.limit * 2",
    ):
        assert compile_expression(source).column is not None, source


def test_the_failures_that_the_documentation_shows_are_what_is_said() -> None:
    page = (Path(__file__).parents[3] / "docs" / "expressions.md").read_text()
    shown = re.findall(r"^(expression '(.*?)': .*)$", page, re.MULTILINE)
    assert len(shown) == 4
    contexts: list[dict[str, Any]] = [
        {"event": {"used": 1, "limit": 0}},
        {"event": {"used": "95"}},
        {"customer": {"mrr": None}},
        {"event": {"used": 6}},
    ]
    for (cause, source), context in zip(shown, contexts, strict=True):
        with pytest.raises(ExpressionFailure) as caught:
            compile_expression(source).evaluate(context)
        assert caught.value.cause == cause
