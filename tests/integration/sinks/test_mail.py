"""Mail, at a real SMTP server (aiosmtpd): who is to blame for a refusal, who of several recipients has the mail, which
addresses arrive, and that no value becomes a header. The bytes are also read by a parser of another language
(postal-mime, npm), because Python's own parser could share a fault with what it checks."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bridge.sinks.http import HttpClient
from bridge.sinks.model import SINKS, SendOutcome, SinkConnection, Wire
from tests.integration.sinks.conftest import HEAD, Start
from tests.integration.sinks.test_contract import delivery, send
from tests.integration.sinks.test_delivery import until_it_is
from tests.support.mail import MailServer, Say
from tests.support.producers import Producer
from tests.support.servers import Database

MAIL: dict[str, Any] = {"to": "ada@example.com", "subject": "Hello", "text": "plain"}


@contextmanager
def server(say: Say = lambda _verb, _argument: None, *, utf8: bool = False) -> Iterator[MailServer]:
    made = MailServer(say=say, utf8=utf8)
    try:
        yield made
    finally:
        made.close()


def mailer(mail_server: MailServer, **more: Any) -> SinkConnection:
    values = {"type": "email", "host": "127.0.0.1", "port": mail_server.port, "security": "none"}
    return SINKS["email"].model_validate({**values, "from": "Bridge <bridge@example.com>", **more})


# -- whose fault --------------------------------------------------------------------------------------


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    ("verb", "answer", "verdict", "blame"),
    [
        ("CONNECT", "554 5.7.1 your address is on our block list CANARY", "retry", "destination"),
        ("CONNECT", "421 4.3.2 too many connections", "retry", "destination"),
        ("EHLO", "504 5.5.2 need fully-qualified hostname", "retry", "destination"),
        ("EHLO", "550 5.7.1 go away", "retry", "destination"),
        ("MAIL", "550 5.7.1 sender address rejected: not owned by user CANARY", "retry", "destination"),
        ("MAIL", "530 5.7.0 authentication required", "retry", "destination"),
        ("MAIL", "553 5.1.8 domain of sender address does not exist", "retry", "destination"),
        ("MAIL", "451 4.3.0 later", "retry", "destination"),
        ("MAIL", "552 5.3.4 message size exceeds fixed limit", "dead", "message"),
        # Postfix says about us only at RCPT what it thinks of us: smtpd_delay_reject
        (
            "RCPT",
            "504 5.5.2 <x>: Helo command rejected: need fully-qualified hostname",
            "retry",
            "destination",
        ),
        ("RCPT", "550 5.1.8 <bridge@example.com>: sender address rejected", "retry", "destination"),
        ("RCPT", "421 4.7.0 closing", "retry", "destination"),
        ("RCPT", "554 5.7.1 relay access denied", "retry", "recipient"),
        ("RCPT", "554 blocked", "retry", "recipient"),
        ("RCPT", "450 4.2.0 greylisted", "retry", "recipient"),
        ("RCPT", "452 4.2.2 mailbox full", "retry", "recipient"),
        ("RCPT", "452 4.5.3 too many recipients", "retry", "recipient"),
        ("RCPT", "552 5.2.2 mailbox full", "retry", "recipient"),
        ("RCPT", "552 full", "retry", "recipient"),
        ("RCPT", "550 5.1.1 no such user CANARY", "dead", "message"),
        ("RCPT", "553 no such name", "dead", "message"),
    ],
)
def test_a_refusal_is_ours_the_recipients_or_the_messages(
    verb: str, answer: str, verdict: str, blame: str
) -> None:
    with server(lambda said, _: answer if said == verb else None) as mail_server:
        outcome = send(mailer(mail_server), MAIL)
        assert (outcome.verdict, outcome.blame, outcome.code) == (verdict, blame, f"smtp_{answer[:3]}")
        assert "CANARY" not in outcome.cause
        enhanced = answer.split()[1]
        assert enhanced in outcome.cause or not enhanced[0].isdigit()
        assert mail_server.mails == []


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    ("answer", "verdict", "blame"),
    [
        ("554 5.7.1 spam", "dead", "message"),
        ("550 5.7.26 unauthenticated sender, DMARC", "retry", "destination"),
        ("552 5.3.4 too large", "dead", "message"),
        ("452 4.3.1 insufficient storage", "retry", "destination"),
        ("452 4.2.2 full", "retry", "recipient"),
        ("451 4.7.1 scanner", "retry", "message"),
    ],
)
def test_an_answer_to_the_content_is_the_messages_unless_it_says_otherwise(
    answer: str, verdict: str, blame: str
) -> None:
    with server() as mail_server:
        mail_server.answers = [answer]
        outcome = send(mailer(mail_server), MAIL)
        assert (outcome.verdict, outcome.blame) == (verdict, blame)


# -- several recipients -------------------------------------------------------------------------------

MAILS = """
mails: { connection: mail, to: $event.to, subject: hello, text: hi }
"""
DIGEST = """
mails:
  connection: mail
  to: [ops@x.example, slow@x.example]
  subject: hello
  text: $event.n
  digest: { by: all, every: 1s, max: 30 }
"""
THREE = {**MAIL, "to": ["Ada <ada@example.com>", "slow@example.com", "gone@example.com"]}


def test_each_of_several_recipients_gets_it_once_or_is_told_of() -> None:
    """One takes it, one is deferred and takes it later, one never does: no recipient twice, and none in silence."""
    deferred = iter(["450 4.2.0 greylisted", "450 4.2.0 greylisted"])

    def say(verb: str, argument: str) -> str | None:
        if verb != "RCPT":
            return None
        if "slow@" in argument:
            return next(deferred, None)
        return "550 5.1.1 no such user" if "gone@" in argument else None

    with server(say) as mail_server:
        connection, fields, outcomes = mailer(mail_server), dict(THREE), []
        for _ in range(3):
            outcomes.append(send(connection, fields))
            fields |= outcomes[-1].left or {}
        first, second, third = outcomes
        assert (first.verdict, first.code, first.blame) == ("retry", "smtp_450", "recipient")
        assert not {"subject", "text"} & set(first.left or {}), "only what is others than before"
        assert "1 of 3" in first.cause
        assert first.left is not None
        assert first.left["to"] == ["slow@example.com"]
        assert (second.verdict, second.code) == ("retry", "smtp_450")
        assert (third.verdict, third.code, third.blame) == ("dead", "smtp_550", "message")
        assert "1 of 3 recipients did not get it" in third.cause
        assert third.left is not None
        assert third.left["to"] == ["gone@example.com"]
        assert [to for to, _ in mail_server.mails] == [["ada@example.com"], ["slow@example.com"]]
        heads = {raw.split(b"\r\nMIME-Version")[0] for raw in mail_server.raw}
        assert len(heads) == 1, "the header is the same for all, and shows all"
        assert not any("@" in one.cause for one in outcomes)
        assert third.left is not None
        assert not third.gone, "the others have it: the fallback is for when nobody has"
        # what a person retries goes to the one who lacks it only
        again = send(connection, {**THREE, **third.left})
        assert (again.verdict, again.code, len(mail_server.mails)) == ("dead", "smtp_550", 2)


@pytest.mark.parametrize(
    ("answers", "verdict", "left"),
    [
        ({"ada": None, "slow": None, "gone": None}, "sent", None),
        ({"ada": "450 x", "slow": "450 x", "gone": "450 x"}, "retry", None),
        ({"ada": "550 x", "slow": "550 x", "gone": "550 x"}, "dead", None),
        ({"ada": "450 x", "slow": "550 x", "gone": "550 x"}, "retry", ["Ada <ada@example.com>"]),
        ({"ada": None, "slow": "550 x", "gone": "550 x"}, "dead", ["slow@example.com", "gone@example.com"]),
        (
            {"ada": None, "slow": "450 4.1.8 x", "gone": "450 x"},
            "retry",
            ["slow@example.com", "gone@example.com"],
        ),
    ],
)
def test_what_is_left_of_a_mail(answers: dict[str, str | None], verdict: str, left: list[str] | None) -> None:
    def say(verb: str, argument: str) -> str | None:
        named = [answer for name, answer in answers.items() if f"<{name}@" in argument]
        return named[0] if verb == "RCPT" and named else None

    with server(say) as mail_server:
        outcome = send(mailer(mail_server), THREE)
        assert outcome.verdict == verdict
        assert (None if outcome.left is None else outcome.left["to"]) == left


@pytest.mark.parametrize(("answer", "left"), [("451 later", None), ("cut", None)])
def test_a_mail_whose_content_was_not_taken_goes_to_all_again(answer: str, left: None) -> None:
    with server() as mail_server:
        mail_server.answers = [answer]
        outcome = send(mailer(mail_server), THREE)
        assert (outcome.verdict, outcome.left) == ("retry", left)


def test_who_is_named_twice_gets_it_once() -> None:
    with server() as mail_server:
        fields = {**MAIL, "to": ["b@x.example", "Ada <a@x.example>", "b@X.example", "B@x.example"]}
        assert send(mailer(mail_server), fields).verdict == "sent"
        assert mail_server.mails[0][0] == ["b@x.example", "a@x.example", "B@x.example"]


def test_who_was_refused_is_not_asked_again_when_the_content_is_put_off() -> None:
    asked: list[str] = []

    def say(verb: str, argument: str) -> str | None:
        if verb == "RCPT":
            asked.append(argument)
        return "550 5.1.1 no" if verb == "RCPT" and "gone@" in argument else None

    with server(say) as mail_server:
        mail_server.answers = ["451 later"]
        connection = mailer(mail_server)
        first = send(connection, THREE)
        second = send(connection, {**THREE, **(first.left or {})})
        assert (first.verdict, second.verdict, second.code) == ("retry", "dead", "smtp_550")
        assert sum("gone@" in one for one in asked) == 1
        assert "1 of 3 recipients did not get it" in second.cause


@pytest.mark.slow
def test_a_bridge_retries_who_was_deferred_and_a_person_who_was_refused(
    source: Database, target_connection: psycopg.Connection[tuple[Any, ...]], bridge_with: Start
) -> None:
    deferred = iter(["450 4.2.0 greylisted"])
    missing = {"gone@": "550 5.1.1 no such user"}

    def say(verb: str, argument: str) -> str | None:
        if verb == "RCPT" and "slow@" in argument:
            return next(deferred, None)
        return next((said for name, said in missing.items() if verb == "RCPT" and name in argument), None)

    with server(say) as mail_server:
        address = f"host: 127.0.0.1, port: {mail_server.port}, security: none, from: b@x.example"
        connection = f"mail: {{{{ type: email, {address} }}}}"
        bridge = (
            bridge_with(MAILS, head=HEAD.replace("pipelines:", f"  {connection}\npipelines:"))
            .start()
            .wait_ready()
        )
        with Producer(source.dsn) as producer:
            producer.transaction(payloads=[{"to": THREE["to"]}])
        mail_server.wait(2)
        until_it_is(target_connection, "select state from bridge.delivery", "dead")
        letter = "select code || ': ' || cause from bridge.dead_letter"
        cause = "smtp_550: SMTP 550 5.1.1: the recipient was refused (1 of 3 recipients did not get it)"
        until_it_is(target_connection, letter, cause)
        missing.clear()
        assert bridge.command("dead", "retry", "--all").returncode == 0
        mails = mail_server.wait(3)
        until_it_is(target_connection, "select state from bridge.delivery", "sent")
    told = [["ada@example.com"], ["slow@example.com"], ["gone@example.com"]]
    assert [to for to, _ in mails] == told, "each once"
    assert {mail["To"] for _, mail in mails} == {"Ada <ada@example.com>, slow@example.com, gone@example.com"}


@pytest.mark.slow
def test_what_is_left_of_a_digest_takes_no_recipient_from_the_next(
    source: Database, target_connection: psycopg.Connection[tuple[Any, ...]], bridge_with: Start
) -> None:
    """One recipient has the first message, the other is deferred while a second message of the same group comes."""
    full = {"slow@": "452 4.2.2 mailbox full"}

    def say(verb: str, argument: str) -> str | None:
        return next((said for name, said in full.items() if verb == "RCPT" and name in argument), None)

    with server(say) as mail_server:
        address = f"host: 127.0.0.1, port: {mail_server.port}, security: none, from: b@x.example"
        head = HEAD.replace("pipelines:", f"  mail: {{{{ type: email, {address} }}}}\npipelines:")
        bridge_with(DIGEST, head=head).start().wait_ready()
        with Producer(source.dsn) as producer:
            for number in range(1, 4):
                producer.transaction(payloads=[{"n": f"no {number}"}], key=f"k{number}")
                mail_server.wait(number)
        full.clear()
        until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 3)
    told: dict[str, list[str]] = {}
    for to, mail in mail_server.mails:
        assert isinstance(mail, EmailMessage)
        for one in to:
            told.setdefault(one, []).extend(mail.get_content().splitlines())
    assert {one: sorted(lines) for one, lines in told.items()} == {
        "ops@x.example": ["no 1", "no 2", "no 3"],
        "slow@x.example": ["no 1", "no 2", "no 3"],
    }


def test_the_fallback_takes_what_nobody_got() -> None:
    deferred = iter(["450 later"])

    def say(verb: str, argument: str) -> str | None:
        if verb != "RCPT" or "ops@" in argument:
            return None
        return next(deferred, "550 5.1.1 no such user") if "slow@" in argument else "550 5.1.1 no such user"

    fields: dict[str, Any] = {
        **MAIL,
        "to": ["gone@example.com", "slow@example.com"],
        "fallback": "ops@example.com",
    }
    with server(say) as mail_server:
        connection = mailer(mail_server)
        first = send(connection, fields)
        assert (first.verdict, first.gone) == ("retry", False)
        rest = fields | dict(first.left or {})
        last = send(connection, rest)
        assert (last.verdict, last.gone, last.left) == ("dead", True, None)
        elsewhere = connection.to_fallback(rest)
        assert elsewhere is not None
        assert send(connection, dict(elsewhere)).verdict == "sent"
        ((to, mail),) = mail_server.mails
        assert (to, mail["To"]) == (["ops@example.com"], "ops@example.com")


def test_the_recipient_of_a_lane_is_the_mailbox_whatever_its_name_and_case() -> None:
    with server() as mail_server:
        connection = mailer(mail_server)
    named = [connection.recipient(delivery({**MAIL, "to": to})) for to in ("A <a@B.example>", "a@b.example")]
    assert named == ["a@b.example", "a@b.example"]
    assert connection.recipient(delivery({**MAIL, "to": None, "fallback": "o@x.example"})) == "o@x.example"


# -- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("Ada <ada@BÜCHER.example>", "ada@xn--bcher-kva.example"),
        ("ada@faß.example", "ada@xn--fa-hia.example"),
        ("ada@例え.テスト", "ada@xn--r8jz45g.xn--zckzah"),
        ("ada@bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("o'neil+tag@example.com", "o'neil+tag@example.com"),
        ('"two words"@example.com', '"two words"@example.com'),
    ],
)
def test_a_mailbox_is_told_in_ascii(to: str, told: str) -> None:
    heard: list[str] = []
    with server(lambda verb, argument: heard.append(argument) if verb == "RCPT" else None) as mail_server:
        assert send(mailer(mail_server), {**MAIL, "to": to}).verdict == "sent"
        assert heard == [f"TO:<{told}>"]
        assert mail_server.raw[0].isascii()


@pytest.mark.parametrize(
    "to",
    [
        *("nobody", "a@", "@b.example", "a b@c.example", "a..b@c.example", "a@b.example, c@d.example"),
        *("a@b.example;c@d.example", "a@-b.example", "a@b\u2028.example", "a\u200b@b.example"),
        *("a <b", "a@xn--\u200d.example", f"{'a' * 65}@b.example", f"a@{'b' * 64}.example", "a@[1.2.3]"),
        *("a@b.example> NOTIFY=NEVER", "a@b.example\r\nRCPT TO:<c@d.example>", "<a@b.example>\x00"),
    ],
)
def test_what_is_no_mailbox_is_the_messages_own_fault(to: str) -> None:
    with server() as mail_server:
        outcome = send(mailer(mail_server), {**MAIL, "to": to})
        assert (outcome.verdict, outcome.code, outcome.blame) == ("dead", "message", "message")
        assert "to" in outcome.cause
        assert "example" not in outcome.cause.replace("ada@example.com", "")
        assert mail_server.greeted == [], "nothing was said to the server"


def test_letters_outside_ascii_before_the_at_need_a_server_that_takes_them() -> None:
    fields = {**MAIL, "to": ["Jörg <jörg@bücher.example>", "ada@example.com"]}
    with server(utf8=True) as mail_server:
        assert send(mailer(mail_server), fields).verdict == "sent"
        ((to, mail),) = mail_server.mails
        assert to == ["jörg@xn--bcher-kva.example", "ada@example.com"]
        assert "jörg@xn--bcher-kva.example".encode() in mail_server.raw[0]
        assert mail["Subject"] == "Hello"
    with server() as mail_server:
        outcome = send(mailer(mail_server), fields)
        assert (outcome.verdict, outcome.code) == ("dead", "smtp_553")
        assert "SMTPUTF8" in outcome.cause
        assert "1 of 2 recipients did not get it" in outcome.cause
        assert mail_server.mails[0][0] == ["ada@example.com"]
        assert mail_server.raw[0].isascii()
        alone = send(mailer(mail_server), {**MAIL, "to": "jörg@example.com"})
        assert (alone.verdict, alone.code, len(mail_server.mails)) == ("dead", "smtp_553", 1)
        replied = send(mailer(mail_server), {**MAIL, "reply_to": "jörg@example.com"})
        assert (replied.verdict, replied.code) == ("dead", "message")
        ours = send(mailer(mail_server, **{"from": "brücke@example.com"}), MAIL)
        assert (ours.verdict, ours.code, ours.blame) == ("retry", "no_smtputf8", "destination")


# -- the session --------------------------------------------------------------------------------------


def test_the_server_is_greeted_with_a_full_name_or_an_address() -> None:
    with server() as mail_server:
        assert send(mailer(mail_server, ehlo="bridge.example.com"), MAIL).verdict == "sent"
        assert send(mailer(mail_server), MAIL).verdict == "sent"
        first, second = mail_server.greeted
        assert first == "bridge.example.com"
        assert "." in second
    old = lambda verb, _: "502 5.5.1 what?" if verb == "EHLO" else None  # noqa: E731
    with server(old) as mail_server:
        assert send(mailer(mail_server, ehlo="bridge.example.com"), MAIL).verdict == "sent"
        assert mail_server.greeted == ["bridge.example.com"] * 2


def test_no_more_connections_than_the_configuration_allows() -> None:
    """Two destinations of one server share them; a message that finds none in time waits, and blames nobody."""

    async def burst(first: SinkConnection, second: SinkConnection, count: int) -> list[SendOutcome]:
        client = HttpClient()
        try:
            sends = [
                asyncio.ensure_future(each.send(delivery(MAIL), Wire(client, 3.0)))
                for each in (first, second)
                for _ in range(count)
            ]
            _, pending = await asyncio.wait(sends, timeout=2.5)
            mail_server.gate.set()
            await asyncio.wait(pending or sends)
            return [one.result() for one in sends]
        finally:
            await client.close()

    with server() as mail_server:
        mail_server.answers = ["wait"] * 3
        limits = {"connections": 3}
        outcomes = asyncio.run(burst(mailer(mail_server, **limits), mailer(mail_server, **limits), 4))
        assert mail_server.most == 3
        assert [one.verdict for one in outcomes].count("sent") == 3
        put_off = [one for one in outcomes if one.verdict != "sent"]
        assert {(one.verdict, one.code, one.blame) for one in put_off} == {("retry", "busy", "message")}
        assert mailer(mail_server, **limits).at_once() == 3


# -- the bytes ----------------------------------------------------------------------------------------

INJECTED = base64.b64encode(b"a\r\nX-Injected: yes\r\n\r\nbody").decode()
SUBJECTS = [
    "=?utf-8?q?a=0D=0ABcc:_evil@example.org=0D=0A?=",
    f"=?utf-8?b?{INJECTED}?=",
    "=?utf-8?q?a=0AX-Injected:_yes?= " + "x" * 200,
    "=?utf-8?q?free_text?=",
    "=?iso-8859-1?q?a?= =?utf-8?q?=0AX-Injected:?=",
    "Re: \u2028X-Injected: yes",
    "a\x85X-Injected: yes",
    "Übergröße " * 20,
    "😀" * 40,
    " lead  double ",
    "x" * 300,
    "a?=b =? c",
    'plain, with: everything; <a@b.example> "q" \\',
]
NAMES = [
    'Acme "The Best"',
    "O'Neil, Q.",
    "Jörg Müller, Köln",
    "日本語の名前がとても長いのでどこかで折り返される名前です株式会社",
    "=?utf-8?q?a=0AX-Injected:_yes?=",
    "a (comment) b",
    "back\\slash",
    "Bcc: evil@example.org",
    "x" * 200,
]
TEXTS = [
    "line\n.\nend",
    "ü" * 1200,
    "x" * 3000,
    "From me\n--\n\n\ttab",
    "\u2028 and \x85",
    "=C3=A4 =?utf-8?q?x?=",
]
PARSE = """
import { readdirSync, readFileSync } from "node:fs";
import PostalMime from "postal-mime";
const told = [];
for (const name of readdirSync("mails").sort()) {
  const mail = await PostalMime.parse(readFileSync("mails/" + name));
  const keys = mail.headers.map((header) => header.key);
  told.push({ keys, subject: mail.subject, to: mail.to, text: mail.text, html: mail.html });
}
console.log(JSON.stringify(told));
"""
FIELDS = ["from", "to", "subject", "message-id", "date", "auto-submitted"]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[bytes]], list[dict[str, Any]]]:
    """Mails as postal-mime reads them. It wants node and npm's registry or cache."""
    folder: Path = tmp_path_factory.mktemp("postal")
    assert shutil.which("npm"), "node and npm are needed"
    (folder / "package.json").write_text('{"name": "mails", "private": true, "type": "module"}')
    npm = ["npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--silent", "postal-mime@2.4.4"]
    subprocess.run(npm, cwd=folder, check=True, capture_output=True, timeout=150)
    (folder / "parse.mjs").write_text(PARSE)

    def parse(mails: list[bytes]) -> list[dict[str, Any]]:
        (folder / "mails").mkdir(exist_ok=True)
        for number, mail in enumerate(mails):
            (folder / "mails" / f"{number:04}").write_bytes(mail)
        command = ["node", "parse.mjs"]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        told: list[dict[str, Any]] = json.loads(done.stdout)
        return told

    return parse


@pytest.mark.fault(100)
@pytest.mark.security(16)
def test_what_arrives_is_what_was_said_and_nothing_else(
    parsed: Callable[[list[bytes]], list[dict[str, Any]]],
) -> None:
    """Subjects, names and texts through the server, read by a parser that is not Python's."""
    said = [{"subject": subject} for subject in SUBJECTS]
    quoted = [name.replace("\\", "\\\\").replace('"', '\\"') for name in NAMES]
    said += [{"to": f'"{name}" <o@example.com>'} for name in quoted]
    said += [{"to": f"{name} <o@example.com>"} for name in NAMES if "\\" not in name]
    said += [{"text": text} for text in TEXTS] + [{"text": text, "html": f"<p>{text}</p>"} for text in TEXTS]
    with server() as mail_server:
        connection = mailer(mail_server)
        outcomes = [send(connection, {**MAIL, **one}) for one in said]
        assert {one.verdict for one in outcomes} == {"sent"}
        raw = [mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for mail in mail_server.raw]
    assert raw == mail_server.raw, "every line ends with CRLF"
    names = [*NAMES, *(name for name in NAMES if "\\" not in name)]
    for one, mail, found in zip(said, raw, parsed(raw), strict=True):
        assert mail.isascii()
        assert max(map(len, mail.split(b"\r\n"))) <= 998
        assert [key for key in found["keys"] if key in FIELDS] == FIELDS
        assert not {"bcc", "x-injected", "cc"} & set(found["keys"])
        assert b"\nx-injected" not in mail.lower()
        if "subject" in one:
            assert found["subject"] == one["subject"].replace("\u2028", " ").replace("\x85", " ")
        elif "to" in one:
            assert found["to"] == [{"address": "o@example.com", "name": names.pop(0)}]
        else:
            assert found["text"].replace("\r\n", "\n").rstrip("\n") == one["text"]
            if "html" in one:
                assert found["html"].replace("\r\n", "\n").rstrip("\n") == one["html"]


@pytest.mark.security(16)
@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x00", "\x1c"])
def test_a_control_character_in_a_header_is_the_messages_own_fault(separator: str) -> None:
    with server() as mail_server:
        for key in ("subject", "to", "reply_to"):
            outcome = send(mailer(mail_server), {**MAIL, key: f"a{separator}X-Injected: yes <a@b.example>"})
            assert (outcome.verdict, outcome.code, outcome.blame) == ("dead", "message", "message")
        assert mail_server.mails == []
