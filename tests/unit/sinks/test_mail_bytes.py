"""The bytes of a mail, for any text: the fields that were meant, read as they were said."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.header import decode_header, make_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.sinks.mail import Mail, checked, encoded
from bridge.sinks.mailbox import Address, address_of, ascii_domain

BREAKS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
FIELDS = ["From", "To", "Subject", "Message-ID", "Date", "Auto-Submitted", "Reply-To", "MIME-Version"]


@given(TEXTS, TEXTS, TEXTS)
@example("=?utf-8?q?a=0D=0ABcc:_evil@example.org?=", "=?utf-8?b?Cg==?=", "\r\n.\r\nX: y")
@example("a?= =?utf-8?q?b", '"', "")
def test_no_text_makes_a_field_and_each_is_read_as_it_was(subject: str, name: str, text: str) -> None:
    someone = Address(name, "o", "example.com")
    when = datetime(2027, 3, 1, tzinfo=UTC)
    mail = Mail("id", someone, [someone] * 3, subject, text or "-", f"<p>{text}", someone, when).whole()
    assert mail.isascii()
    assert all(len(line) <= 998 for line in mail.split(b"\r\n"))
    head = mail.split(b"\r\nContent-Type")[0].decode()
    lines = head.split("\r\n")
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == FIELDS
    assert all(len(line) <= 76 for line in lines if "=?" in line)
    unfolded = re.sub("\r\n ", " ", head)
    found = re.search(r"\r\nSubject: ([^\r]*)\r\n", unfolded)
    assert found
    said = str(make_header(decode_header(found[1]))) if "=?" in found[1] else found[1]
    assert said == BREAKS.sub(" ", subject)


@given(TEXTS)
def test_an_encoded_word_is_no_longer_than_it_may_be(text: str) -> None:
    words = encoded(text).split("\r\n ")
    assert all(len(word) <= 64 for word in words)
    assert all(re.fullmatch(r"=\?utf-8\?[qb]\?[!-~]+\?=", word) for word in words if text)


@pytest.mark.parametrize(
    "header",
    [
        b"From: a\r\nBcc: b\r\n",
        b"From: a\r\nSubject: a\r\nSubject: b\r\n",
        b"From: a\r\nX\r\n",
        b"From: a\nBcc: b\r\n",
        b"From: a\r\n\r\nbody\r\n",
        b"Subject: " + b"x" * 1000 + b"\r\n",
    ],
)
def test_bytes_that_are_not_what_was_meant_are_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|line"):
        checked(header, b"Content-Type: text/plain\r\n\r\nx\r\n")


@given(TEXTS)
def test_any_text_is_a_mailbox_or_refused_without_quoting_it(text: str) -> None:
    said = ""
    try:
        found = address_of(text)
    except ValueError as error:
        said, found = str(error), None
    assert found is not None or said in (
        "must be an address such as ada@example.com or Ada <ada@example.com>",
        "must not contain line breaks or control characters",
    )
    if found is not None:
        assert found.domain.isascii()
        assert not re.search(r"[\s<>\x00-\x1f]", re.sub(r'^".*"@', "", found.spec))


def test_a_domain_that_is_none_is_refused() -> None:
    for domain in ("", ".", "a..b", "-a", "a-", "a b", "\u2028", "a" * 64, "xn--\u200d", "[1.2.3]", "[::1]"):
        with pytest.raises(ValueError, match=r"domain|address"):
            ascii_domain(domain)
    assert ascii_domain("[IPv6:2001:db8::1]") == "[IPv6:2001:db8::1]"
