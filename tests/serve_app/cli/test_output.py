"""Errors as people and machines get them."""

import pytest
import typer

from deployments.engine.errors import InvalidRequest
from serve_app.cli.output import Failure, printable, reporting


def ended(error: BaseException, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught, reporting(as_json):
        raise error
    return int(caught.value.exit_code)


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(Failure("code", "it is so", "n")) == 1
    assert capsys.readouterr() == ("", "error: n: it is so\n")


def test_a_field_that_the_message_names_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(InvalidRequest("steps is 500, outside 10..50", "steps")) == 1
    assert capsys.readouterr().err == "error: steps is 500, outside 10..50\n"


def test_machines_get_the_services_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(Failure("code", "it is so", "n"), as_json=True) == 1
    assert '"error"' in capsys.readouterr().out


def test_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_bug_is_no_failure() -> None:
    with pytest.raises(ZeroDivisionError), reporting(as_json=False):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[31m", "a\ufffd[31m"), ("\ud800\n\x85", "\ufffd" * 3), ("é 字", "é 字")]
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
