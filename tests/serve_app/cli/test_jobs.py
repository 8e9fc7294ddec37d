"""`darkroom jobs` and `darkroom cancel` against a service."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.cli import jobs
from serve_app.cli.output import write_table
from serve_app.jobs.states import JobState
from tests.serve_app.cli.command_line import darkroom_beside, document
from tests.serve_app.front import Front
from tests.serve_app.images.pictures import gradient, sent


async def drawn(running: Front, prompt: str = "a red circle", seed: int = 2, **fields: Any) -> dict[str, Any]:
    answer = await running.generate(prompt, seed=seed, **fields)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_lists_the_newest_first(running: Front, url: str) -> None:
    for seed in (2, 4):
        await drawn(running, seed=seed)
    await running.generate("poison [red]square[/red]", seed=6)
    result = await darkroom_beside("jobs", "--url", url)
    assert result.exit_code == 0
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["JOB", "STATUS", "CREATED", "MODEL", "SEED", "PROMPT"]
    assert [row[1] for row in rows] == ["failed", "complete", "complete"]
    assert [row[5] for row in rows] == ["6", "4", "2"]
    assert rows[0][6:] == ["poison", "[red]square[/red]"]
    listed = document(await darkroom_beside("jobs", "--url", url, "--json"))["jobs"]
    assert [job["request"]["seed"] for job in listed] == [6, 4, 2]
    assert [row[0] for row in rows] == [job["job_id"][-8:] for job in listed]


async def test_a_row_fits_a_terminal_and_has_what_names_the_job(
    running: Front, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await drawn(running, "a red circle " * 20, seed=4294967294)
    # (the size of the terminal that a test has none of)
    monkeypatch.setattr(jobs, "write_table", partial(write_table, width=80))
    for line in (await darkroom_beside("jobs", "--url", url)).stdout.splitlines():
        assert len(line) <= 80
    cells = line.split()
    assert (cells[0], cells[1]) == (job["job_id"][-8:], "complete")
    assert "a red" in line
    assert line.endswith("\u2026")
    monkeypatch.undo()
    assert ("a red circle " * 20).strip() in (await darkroom_beside("jobs", "--url", url)).stdout


async def test_ids_that_end_alike_are_listed_as_long_as_they_must_be(running: Front, url: str) -> None:
    for first in ("1", "2"):
        request = {"model": "demo-sd15", "seed": 2, "prompt": "a circle"}
        await running.service.store.create(request, max_queued=9, job_id="0" * 20 + first + "abcdef01234")
    result = await darkroom_beside("jobs", "--url", url)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["2abcdef01234", "1abcdef01234"]
    refused = await darkroom_beside("cancel", "ef01234", "--url", url, "--json")
    assert (refused.exit_code, document(refused)["error"]["code"]) == (1, "ambiguous_id")
    stopped = await darkroom_beside("cancel", "2ABCDEF01234", "--url", url, "--json")
    assert (document(stopped)["job_id"][20], document(stopped)["status"]) == ("2", "cancelled")


async def test_a_picture_made_larger_is_a_job_too(running: Front, url: str) -> None:
    answer = await running.http.post("/upscale", json={"image": sent(gradient(40, 30))}, headers={"prefer": "wait=30"})
    row = (await darkroom_beside("jobs", "--url", url)).stdout.splitlines()[1].split()
    assert (row[0], row[1]) == (answer.json()["job_id"][-8:], "complete")
    assert row[4:] == ["lanczos", "-", "40x30", "to", "80x60"]


async def test_waits_for_a_job_s_end(running: Front, url: str) -> None:
    accepted = (await running.generate("slow circle", seed=2, wait=None)).json()
    result = await darkroom_beside("wait", accepted["job_id"][-8:], "--url", url)
    assert (result.exit_code, result.stdout) == (0, f"{accepted['job_id']}  complete\n")
    # (an ended one, too)
    result = await darkroom_beside("wait", accepted["job_id"], "--url", url, "--json")
    assert (result.exit_code, document(result)["status"]) == (0, "complete")


async def test_waits_no_longer_than_told(running: Front, url: str) -> None:
    accepted = (await running.generate("endless", wait=None)).json()
    result = await darkroom_beside("wait", accepted["job_id"], "--for", 0.3, "--url", url, "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "wait_timed_out")
    assert document(result)["job_id"] == accepted["job_id"]
    assert not (await running.newest()).state.terminal


async def test_waiting_for_a_job_that_fails(running: Front, url: str) -> None:
    await running.generate("poison")
    result = await darkroom_beside("wait", (await running.newest()).id, "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: numerical_failure: ")


async def test_the_images_of_a_job_in_files(running: Front, url: str, tmp_path: Path) -> None:
    job = await drawn(running, seed=4, n=3, output_format="webp")
    arguments = ["result", job["job_id"][-8:], "--url", url, "-o"]
    result = await darkroom_beside(*arguments, tmp_path / "x.webp")
    # the classifier of these stages withholds odd seeds
    assert result.stdout == f"{tmp_path / 'x-4.webp'}  seed 4\n{tmp_path / 'x-6.webp'}  seed 6\n"
    assert "seed 5 was withheld as unsafe" in result.stderr
    with Image.open(tmp_path / "x-6.webp") as image:
        assert image.format == "WEBP"
    for wrong, message in (
        (tmp_path / "x.webp", "exists already"),
        (tmp_path / "x.png", "are webp"),
        ("-", "one image on stdout"),
    ):
        refused = await darkroom_beside(*arguments, wrong, "--json")
        assert (refused.exit_code, message in refused.stderr) == (1 if wrong != "-" else 2, True), refused.stderr


async def test_an_image_of_a_job_on_stdout(running: Front, url: str) -> None:
    job = await drawn(running, seed=4)
    result = await darkroom_beside("result", job["job_id"], "--url", url, "-o", "-")
    assert result.stdout_bytes == (await running.http.get(job["image_url"])).content
    job = await drawn(running, seed=4, n=3)
    refused = await darkroom_beside("result", job["job_id"], "--url", url, "-o", "-")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "has 2 images" in refused.stderr


async def test_the_result_of_a_job_that_has_not_ended(running: Front, url: str) -> None:
    accepted = (await running.generate("endless", wait=None)).json()
    result = await darkroom_beside("result", accepted["job_id"], "--url", url, "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "not_ended")
    assert f"`darkroom wait {accepted['job_id'][-8:]}`" in result.stderr


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
        ("../x", "malformed_id"),
        ("0" * 8, "unknown_job"),
    ):
        result = await darkroom_beside("cancel", wrong, "--url", url, "--json")
        assert (result.exit_code, document(result)["error"]["code"]) == (1, code), wrong
