"""`darkroom usage` against a service."""

from datetime import UTC, datetime

from tests.serve_app.cli.command_line import darkroom, darkroom_beside, document
from tests.serve_app.front import Front
from tests.serve_app.stand_in_stages import DECODE_S, STEP_S


async def test_shows_each_day(running: Front, url: str) -> None:
    assert (await running.generate(seed=2, steps=10, n=2)).status_code == 200
    running.service.store.usage.refused("")
    await running.maintenance.beat()
    today = datetime.now(UTC).date().isoformat()
    seconds = 2 * (10 * STEP_S + DECODE_S)
    [row] = document(await darkroom_beside("usage", "--url", url, "--json"))["usage"]
    assert row | {"device_s": round(row["device_s"], 9)} == {
        "tenant": "",
        "day": today,
        "device_s": round(seconds, 9),
        "images": 2,
        "refusals": 1,
    }
    as_csv = (await darkroom_beside("usage", "--url", url, "--csv", "--since", today, "--until", today)).stdout
    assert as_csv == f"tenant,day,device_s,images,refusals\n,{today},{row['device_s']},2,1\n"
    header, line = (await darkroom_beside("usage", "--url", url)).stdout.splitlines()
    assert header.split() == ["TENANT", "DAY", "DEVICE_S", "IMAGES", "REFUSALS"]
    assert line.split() == [today, str(round(row["device_s"], 1)), "2", "1"]
    assert (await darkroom_beside("usage", "--url", url, "--until", "2020-01-01", "--csv")).stdout == (
        "tenant,day,device_s,images,refusals\n"
    )


def test_csv_and_json_exclude_each_other() -> None:
    assert darkroom("usage", "--csv", "--json").exit_code == 2
