"""A recipient that fails is left alone, and the others never wait for it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bridge.dispatch.recipients import Recipients, label

BAD, GOOD = "https://bad.example/hook", "https://good.example/hook"


def test_one_that_fails_again_and_again_is_left_alone_and_the_other_is_not() -> None:
    recipients = Recipients(64)
    assert not any(recipients.failed(BAD, 0.0, "http_500") for _ in range(4))
    assert recipients.wait(BAD, 0.0) == 0.0
    assert recipients.failed(BAD, 0.0, "http_500")
    assert recipients.wait(BAD, 0.0) > 0.0
    assert recipients.wait(GOOD, 0.0) == 0.0
    ((who, seconds, code),) = recipients.left_alone(0.0)
    assert (who, code) == (label(BAD), "http_500")
    assert 0.0 < seconds <= 1.0


def test_what_fails_together_counts_once_as_soon_as_it_is_left_alone() -> None:
    """A hundred in flight when an endpoint goes down are one trouble: not an hour of silence."""
    recipients = Recipients(64)
    for _ in range(100):
        recipients.failed(BAD, 0.0, "timeout")
    assert recipients.wait(BAD, 0.0) <= 1.0


def test_it_is_left_alone_for_as_long_as_it_asks() -> None:
    recipients = Recipients(64)
    assert recipients.failed(BAD, 5.0, "http_503", 1800.0)
    assert recipients.wait(BAD, 5.0) == 1800.0
    assert recipients.wait(BAD, 1806.0) == 0.0


def test_a_new_one_gets_a_part_of_the_places_and_one_in_trouble_gets_one() -> None:
    recipients = Recipients(64)
    assert [recipients.begin(BAD) for _ in range(17)] == [True] * 16 + [False]
    assert recipients.begin(GOOD)
    recipients.works(GOOD)
    assert sum(recipients.begin(GOOD) for _ in range(64)) == 47, "a quarter is left to others"
    for _ in range(16):
        recipients.failed(BAD, 0.0, "timeout")
        recipients.end(BAD, 0.0)
    assert [recipients.begin(BAD), recipients.begin(BAD)] == [True, False]


def test_a_success_makes_it_as_good_as_new_and_says_so_once() -> None:
    recipients = Recipients(64)
    for _ in range(5):
        recipients.failed(BAD, 0.0, "http_500")
    assert recipients.works(BAD)
    assert not recipients.works(BAD)
    assert list(recipients.left_alone(10.0)) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=200))
def test_places_are_given_back(story: list[tuple[str, bool]]) -> None:
    recipients = Recipients(8)
    for name, fine in story:
        if recipients.begin(name):
            if fine:
                recipients.works(name)
            else:
                recipients.failed(name, 0.0, "http_500")
            recipients.end(name, 0.0)
    assert all(recipients.begin(name) for name in "abc")


def test_a_hundred_thousand_recipients_do_not_fill_the_memory() -> None:
    recipients = Recipients(64)
    chance = random.Random(1)
    for number in range(100_000):
        name = f"https://customer-{number}.example/hook"
        recipients.begin(name)
        recipients.failed(name, chance.random(), "timeout")
        recipients.end(name, 1.0)
    assert sum(1 for _ in recipients.left_alone(0.0)) <= 20_000
    assert recipients.remembered <= 20_000


def test_a_label_has_no_path_query_or_name_in_it() -> None:
    for name in ("https://hooks.example/T0/SECRET?token=CANARY", "ada.CANARY@example.com", "CANARY"):
        assert "CANARY" not in label(name)
        assert "SECRET" not in label(name)
    assert label("https://hooks.example/a").startswith("hooks.example ")
    assert label("https://hooks.example/a") != label("https://hooks.example/b")
