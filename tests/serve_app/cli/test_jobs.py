"""`darkroom jobs` and `darkroom cancel` against a service."""

import pytest

from serve_app.cli import jobs
from serve_app.jobs.states import JobState
from tests.serve_app.cli.command_line import darkroom_beside, document
from tests.serve_app.front import Front
from tests.serve_app.images.pictures import gradient, sent


async def test_lists_the_newest_first(running: Front, url: str) -> None:
    for seed in (2, 4):
        assert (await running.generate("a red circle", seed=seed, wait=30)).status_code == 200
    await running.generate("poison [red]square[/red]", seed=6)
    result = await darkroom_beside("jobs", "--url", url)
    assert result.exit_code == 0
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["JOB", "STATUS", "CREATED", "STEPS", "MODEL", "SEED", "PROMPT"]
    assert [row[1] for row in rows] == ["failed", "complete", "complete"]
    assert [row[6] for row in rows] == ["6", "4", "2"]
    assert rows[0][7:] == ["poison", "[red]square[/red]"]
    assert [
        job["request"]["seed"] for job in document(await darkroom_beside("jobs", "--url", url, "--json"))["jobs"]
    ] == [6, 4, 2]


async def test_a_picture_made_larger_is_a_job_too(running: Front, url: str) -> None:
    answer = await running.http.post("/upscale", json={"image": sent(gradient(40, 30))}, headers={"prefer": "wait=30"})
    row = (await darkroom_beside("jobs", "--url", url)).stdout.splitlines()[1].split()
    assert (row[0], row[1]) == (answer.json()["job_id"], "complete")
    assert row[4:] == ["1/1", "lanczos", "-", "40x30", "to", "80x60"]


async def test_goes_through_the_pages(running: Front, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAGE", 2)
    for _ in range(5):
        assert (await running.generate("a circle", seed=2)).status_code == 200
    for limit, listed in ((1, 1), (3, 3), (4, 4), (5, 5), (9, 5)):
        found = document(await darkroom_beside("jobs", "--limit", limit, "--url", url, "--json"))["jobs"]
        assert len({job["job_id"] for job in found}) == listed


async def test_no_control_character_reaches_the_terminal(running: Front, url: str) -> None:
    await running.generate("a \x1b[31mred\x1b[0m circle\x07")
    assert "\x1b" not in (await darkroom_beside("jobs", "--url", url)).stdout


async def test_cancels(running: Front, url: str) -> None:
    accepted = (await running.generate("endless", wait=None)).json()
    result = await darkroom_beside("cancel", accepted["job_id"], "--url", url)
    assert (result.exit_code, result.stdout) == (0, f"{accepted['job_id']}  cancelled\n")
    assert (await running.newest()).state is JobState.CANCELLED


async def test_what_has_ended_stays(running: Front, url: str) -> None:
    job = (await running.generate(seed=2)).json()
    result = await darkroom_beside("cancel", job["job_id"], "--url", url, "--json")
    assert (result.exit_code, document(result)["status"]) == (0, "complete")


async def test_unknown_and_malformed_ids(url: str) -> None:
    result = await darkroom_beside("cancel", "0" * 32, "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: 404: ")
    assert "`darkroom jobs` lists the jobs" in result.stderr
    for wrong, code in (
        ("42", "malformed_id"),
        ("?x", "malformed_id"),
        ("é", "malformed_id"),
        ("../x", "unknown_route"),
    ):
        result = await darkroom_beside("cancel", wrong, "--url", url, "--json")
        assert (result.exit_code, document(result)["error"]["code"]) == (1, code), wrong
