"""The models in the page: what each is, whether it is in memory, and what an admin changes of it."""

import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from serve_app.config.settings import Settings
from serve_app.stages.readiness import StageState
from tests.chromium import PATIENCE_MS, Watched, watched
from tests.ldm_export import write_hollow
from tests.serve_app.stand_in_stages import describe
from tests.serve_app.ui.conftest import front_beside, settings_in

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a front that knows how its stages stand."""
    sd15 = replace(describe("SD15"), checkpoints=("demo-sd15",))
    states = {
        "SD15": StageState("ready", None, 1, sd15),
        "SDXLBase": StageState("asleep", None, 0, None),
    }
    folder = tmp_path_factory.mktemp("front")
    for name in ("portraits", "unloadable", "landscapes"):
        write_hollow(folder / f"{name}.safetensors", "sd15")
    changes = {
        "registry": {"poll_s": 0.05, "folders": [str(folder)]},
        "safety": {"classifier": "package:demo_models/demo-nsfw"},
    }
    with front_beside(Settings.model_validate(settings_in(folder) | changes), states) as address:
        yield address


def opened(tab: Page) -> Locator:
    tab.get_by_role("button", name="Models").click()
    return tab.get_by_role("dialog", name="Models")


def row(dialog: Locator, name: str) -> Locator:
    return dialog.get_by_role("listitem").filter(has=dialog.page.get_by_text(name, exact=True))


def test_each_model_says_how_it_stands(page: Watched) -> None:
    dialog = opened(page.page)
    expect(row(dialog, "demo-sdxl")).to_contain_text("Circles alone.")
    expect(row(dialog, "demo-sd15").locator(".standing")).to_have_text("ready, in memory (cpu)")
    expect(row(dialog, "demo-sdxl").locator(".standing")).to_have_text("asleep")
    expect(dialog.get_by_role("listitem")).to_have_count(3)


def test_an_admin_gives_a_model_another_name_and_takes_it_back(page: Watched) -> None:
    dialog = opened(page.page)
    dialog.get_by_label("Another name").fill("shapes")
    dialog.get_by_label("for the model").select_option("demo-sd15")
    dialog.get_by_role("button", name="Add it").click()
    forget = dialog.get_by_role("button", name="Forget the name shapes of demo-sd15")
    expect(forget).to_be_visible()
    body = {"prompt": "a circle", "model": "shapes", "seed": 2}
    drawn = httpx.post(f"{page.url}/generate", json=body, headers={"prefer": "wait=30"}, timeout=60)
    assert drawn.json()["request"]["model"] == "demo-sd15"
    forget.click()
    expect(forget).to_be_hidden()
    assert httpx.post(f"{page.url}/generate", json=body).status_code == 422


def test_a_model_that_serves_no_more_can_t_be_chosen(page: Watched) -> None:
    tab = page.page
    dialog = opened(tab)
    switch = dialog.get_by_role("switch", name="demo-sdxl serves requests")
    switch.uncheck()
    expect(tab.get_by_label("Model", exact=True).locator("option")).to_have_text(["demo-sd15"])
    switch.check()
    expect(tab.get_by_label("Model", exact=True).locator("option")).to_have_text(["demo-sd15", "demo-sdxl"])


def test_a_switch_that_was_refused_stands_as_it_stood(page: Watched) -> None:
    page.refusals = {422}
    dialog = opened(page.page)
    switch = dialog.get_by_role("switch", name="demo-sd15 serves requests")
    switch.click()  # the default model
    expect(dialog.get_by_role("alert")).to_contain_text("demo-sd15")
    expect(switch).to_be_checked()


def test_added_models_show_how_far_they_are_and_are_removed(page: Watched) -> None:
    small = {"defaults": {"width": 256, "height": 256}}
    for name in ("portraits", "unloadable"):
        body = {"name": name, "source": f"{name}.safetensors", **small}
        assert httpx.post(f"{page.url}/admin/models", json=body).status_code == 202
    dialog = page.page.get_by_role("dialog", name="Models")
    failed = row(dialog, "unloadable").get_by_text("couldn't be added: /srv/models/secret/unet.safetensors is missing")

    def settled() -> bool:
        models = httpx.get(f"{page.url}/admin/models").json()["models"]
        return {model["added"]["state"] for model in models if model["added"]} == {"ready", "failed"}

    until = time.monotonic() + 30
    while not settled():
        assert time.monotonic() < until
        time.sleep(0.05)
    opened(page.page)
    expect(failed).to_be_visible()
    expect(dialog.get_by_role("switch", name="portraits serves requests")).to_be_checked()
    for name in ("portraits", "unloadable"):
        dialog.get_by_role("button", name=f"Remove the model {name}").click()
        expect(dialog.get_by_role("button", name=f"Remove the model {name}")).to_be_hidden()
    while {"portraits", "unloadable"} & {
        model["name"] for model in httpx.get(f"{page.url}/admin/models").json()["models"]
    }:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_admin_adds_a_model_which_can_then_be_chosen(page: Watched) -> None:
    page.refusals = {422}
    tab = page.page
    dialog = opened(tab)
    dialog.get_by_label("A new model").fill("landscapes")
    dialog.get_by_label("its file or folder on the server").fill("nowhere.safetensors")
    dialog.get_by_role("button", name="Load it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("nowhere.safetensors': there is no such file or folder")
    dialog.get_by_label("its file or folder on the server").fill("landscapes.safetensors")
    dialog.get_by_label("its family").select_option("sd15")
    dialog.get_by_role("button", name="Load it").click()
    expect(dialog.get_by_role("switch", name="landscapes serves requests")).to_be_checked()
    expect(dialog.get_by_label("A new model")).to_have_value("")
    offered = tab.get_by_label("Model", exact=True).locator("option")
    expect(offered).to_have_text(["demo-sd15", "demo-sdxl", "landscapes"])
    dialog.get_by_label("Another name").fill("wide")
    dialog.get_by_label("for the model").select_option("landscapes")
    dialog.get_by_role("button", name="Add it").click()
    dialog.get_by_role("button", name="Forget the name wide of landscapes").click()
    dialog.get_by_role("button", name="Remove the model landscapes").click()
    expect(row(dialog, "landscapes")).to_have_count(0)  # by itself
    expect(offered).to_have_text(["demo-sd15", "demo-sdxl"])


@pytest.fixture
def gardens(page: Watched) -> str:
    """A model that was added, with another name, `green`."""
    body = {"name": "gardens", "source": "landscapes.safetensors", "defaults": {"width": 256, "height": 256}}
    assert httpx.post(f"{page.url}/admin/models", json=body).status_code == 202
    assert httpx.put(f"{page.url}/admin/aliases/green", json={"model": "gardens"}).status_code == 200
    return "gardens"


def test_what_is_clicked_during_a_change_waits_for_it(page: Watched, gardens: str) -> None:
    held: list[Route] = []
    page.page.route("**/admin/aliases/*", lambda route: held.append(route))
    dialog = opened(page.page)
    with page.page.expect_request("**/admin/aliases/green"):
        dialog.get_by_role("button", name=f"Forget the name green of {gardens}").click()
    dialog.get_by_role("button", name=f"Remove the model {gardens}").click()  # refused while `green` means it
    for route in held:
        route.continue_()
    expect(row(dialog, gardens)).to_have_count(0)
    expect(dialog.get_by_role("alert")).to_be_empty()


def test_a_look_that_failed_is_made_up_for(page: Watched, gardens: str) -> None:
    page.refusals = {503}
    failures = iter(range(2))

    def failing(route: Route) -> None:
        if next(failures, None) is None:
            route.continue_()
        else:
            route.fulfill(status=503)

    dialog = opened(page.page)
    dialog.get_by_role("button", name=f"Forget the name green of {gardens}").click()
    dialog.get_by_role("button", name=f"Remove the model {gardens}").click()
    expect(row(dialog, gardens)).to_contain_text("is being removed")
    page.page.route("**/admin/models", failing)
    expect(row(dialog, gardens)).to_have_count(0)
    assert next(failures, None) is None


def test_others_change_nothing(browser: Browser, keyed: tuple[str, str]) -> None:
    url, key = keyed
    with watched(browser, url) as one:
        one.refusals = {401, 403}
        tab = one.page
        tab.get_by_role("textbox", name="Key").fill(key)
        tab.get_by_role("button", name="Use it").click()
        dialog = opened(tab)
        expect(dialog.get_by_role("listitem")).to_have_count(2)
        expect(dialog.get_by_role("switch")).to_have_count(0)
        expect(dialog.get_by_label("Another name")).to_be_hidden()
        expect(dialog.get_by_label("A new model")).to_be_hidden()
