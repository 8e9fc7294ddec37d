"""Errors as people and machines get them."""

import json

import pytest
import typer

from deployments.engine.errors import InvalidRequest
from serve_app.cli.output import Failure, printable, reporting, write_table


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


def test_a_table_fits_its_width_and_keeps_the_first_column(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("abcdef01", "a\nb", "one two three four five"), ("0", "", "字字字字字字字字字字")]
    write_table(("JOB", "N", "PROMPT"), rows, width=24)
    assert capsys.readouterr().out.splitlines() == [
        "JOB       N    PROMPT",
        "abcdef01  a\ufffdb  one two \u2026",
        "0              字字字字\u2026",
    ]
    write_table(("JOB", "N", "PROMPT"), rows, width=10)  # too narrow for any
    assert capsys.readouterr().out.splitlines()[1] == "abcdef01  a\ufffdb  one \u2026"
    write_table(("JOB",), [])
    assert capsys.readouterr().out == "JOB\n"


def test_a_failure_of_a_job_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(Failure("code", "it is so", job_id="0" * 32), as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {"error": {"code": "code", "message": "it is so"}, "job_id": "0" * 32}
