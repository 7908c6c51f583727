"""Errors of the library's own, and texts without secrets."""

from __future__ import annotations

import importlib
import pkgutil
import re
import string
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import enhanced_checkpointing
from enhanced_checkpointing import errors
from enhanced_checkpointing.errors import LONGEST_TEXT, CheckpointerError, redact

CLASSES = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]

passwords = st.text(min_size=1, max_size=40)
"""Any text at all: what a URL or libpq cannot hold as it is gets quoted first."""

in_a_url = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@%^|<>\"{}`\\#?[]"
"""Characters that people leave as they are in a URL's password; only `/` and white space end it."""

unlikely = st.text(string.ascii_letters + string.digits, min_size=8, max_size=20).map(lambda text: f"Zq{text}9x")
"""A secret that is no part of the text around it by chance."""


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_can_be_caught_by_one_base_class_and_says_what_it_means(kind: type[CheckpointerError]) -> None:
    assert issubclass(kind, CheckpointerError)
    assert kind.__doc__
    assert str(kind("what happened")) == "what happened"


@given(unlikely, st.text(in_a_url, max_size=10), st.sampled_from(["ada", "", "a.b+c"]))
def test_password_of_a_url_never_shows(secret: str, more: str, user: str) -> None:
    url = f"postgresql://{user}:{secret}{more}@db.example.org:5432/app?sslmode=require"
    redacted = redact(f"connection to {url} failed, is the server up?")
    assert secret not in redacted
    assert f"postgresql://{user}:***@db.example.org:5432/app?sslmode=require" in redacted


@given(passwords)
def test_escaped_password_of_a_url_is_replaced_as_a_whole(password: str) -> None:
    url = f"postgresql://ada:{quote(password, safe='')}@host/db"
    assert redact(url) == "postgresql://ada:***@host/db"


@given(passwords)
def test_quoted_password_of_libpq_is_replaced_as_a_whole(password: str) -> None:
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    assert redact(f"host=db password='{escaped}' user=ada") == "host=db password=*** user=ada"


@given(unlikely, st.text(in_a_url.replace("'", "").replace('"', "").replace("\\", "").replace("&", ""), max_size=10))
def test_bare_password_of_libpq_never_shows(secret: str, more: str) -> None:
    assert redact(f"host=db password={more}{secret} user=ada") == "host=db password=*** user=ada"
    assert secret not in redact(f"host=db user=ada password={more}{secret}")


@given(unlikely)
def test_secret_that_is_named_is_replaced_wherever_it_stands(secret: str) -> None:
    assert redact(f"{secret}, again {secret}", secret) == "***, again ***"


def test_longer_secrets_go_first_and_empty_ones_replace_nothing() -> None:
    assert redact("abcdef abc", "abc", "abcdef", "") == "*** ***"


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "PASSWORD = hunter2",
        "passwd: hunter2",
        "PGPASSWORD=hunter2",
        "DB_PASSWORD=hunter2",
        "sslpassword=hunter2",
        "token=hunter2",
        "access_token: hunter2",
        "api_key=hunter2",
        "apikey=hunter2",
        "api-key: hunter2",
        "secret='hunter2'",
        'secret="hunter2 and more"',
        "{'password': 'hunter2'}",
        '{"password": "hunter2"}',
        "password=one\\ hunter2",
        "password=one,hunter2",
        "redis://:hunter2@host",
        "amqp+ssl://user:hunter2@host",
    ],
)
def test_every_usual_spelling_of_a_secret_is_found(text: str) -> None:
    assert "hunter2" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user ada",
        "postgresql://ada@host/db",
        "postgresql://host:5432/db",
        "see https://example.org:443/path for the token",
        "the passwords differ",
        "",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_follows_a_secret_in_a_url_stays() -> None:
    assert redact("postgresql://host/db?password=hunter2&sslmode=require") == (
        "postgresql://host/db?password=***&sslmode=require"
    )


class Diagnosis:
    """What a server said, in its parts."""

    def __init__(self, primary: str | None) -> None:
        self.message_primary = primary
        self.message_detail = "Token hunter2 is invalid"


class ServerError(Exception):
    """Shaped like an error of psycopg."""

    sqlstate = "22P02"

    def __init__(self, primary: str | None, text: str) -> None:
        super().__init__(text)
        self.diag = Diagnosis(primary)


def test_of_a_server_s_error_only_its_message_and_code_are_shown() -> None:
    error = ServerError("invalid input syntax for type json", "invalid …\nDETAIL: hunter2\nCONTEXT: {secret: hunter2}")
    assert redact(error) == "invalid input syntax for type json (SQLSTATE 22P02)"
    assert redact(ServerError("password=hunter2", "")) == "password=*** (SQLSTATE 22P02)"


def test_error_that_no_server_spoke_in_is_shown_as_it_is() -> None:
    assert redact(ServerError(None, "connection refused")) == "connection refused"


def test_anything_can_be_redacted() -> None:
    assert redact(ValueError("password=hunter2")) == "password=***"
    assert redact(None) == "None"


HOSTILE = (
    *("a", "a:", "a://", "://a:", "@", "password", "password=", "password='", 'password="', "password = ", "user='"),
    *("\\", "\\\\u0000", " at character 1", "1e", "0-0.", "~1", ' , "check": "0', "://u:", "a.", "+a", "\n", " "),
)
"""What a long text is made of by those who want that it takes long to look through."""


def seconds(work: Callable[[], object]) -> float:
    """Of this process alone, the best of some: others may have the processor meanwhile."""
    times = []
    for _ in range(5):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


@pytest.mark.parametrize("part", HOSTILE)
def test_time_to_hide_secrets_grows_with_the_length_of_a_text_and_not_with_its_square(part: str) -> None:
    short, long = part * (10_000 // len(part)), part * (100_000 // len(part))
    assert seconds(lambda: redact(long)) < 40 * seconds(lambda: redact(short)) + 0.005


def patterns() -> dict[str, re.Pattern[str]]:
    """Every compiled expression of the package that reads text."""
    package = enhanced_checkpointing
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(package.__path__, "enhanced_checkpointing.")
    ]
    named = {f"{module.__name__}.{name}": value for module in modules for name, value in vars(module).items()}
    return {
        name: value for name, value in named.items() if isinstance(value, re.Pattern) and isinstance(value.pattern, str)
    }


def test_no_expression_of_the_package_takes_long_to_read_a_hostile_text() -> None:
    found = patterns()
    assert len(found) > 6
    late = []
    for name, pattern in found.items():
        for part in HOSTILE:
            text = part * (30_000 // len(part))
            begun = time.process_time()
            all(pattern.finditer(text))
            if time.process_time() - begun > 1:
                late.append((name, part))
    assert not late


@given(unlikely, st.integers(0, 3 * LONGEST_TEXT))
def test_what_is_said_is_bounded_and_a_cut_shows_no_secret(secret: str, before: int) -> None:
    told = redact(f"{'a' * before} postgresql://u:{secret}@host/db {'b' * 2 * LONGEST_TEXT}")
    assert len(told) < LONGEST_TEXT + 100
    assert secret not in told
    assert "characters left out" in told
