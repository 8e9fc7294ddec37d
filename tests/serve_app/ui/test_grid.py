"""A grid is asked for in the page and fills itself: a batch by a matrix."""

import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.chromium import PATIENCE_MS, Watched, watched

expect.set_options(timeout=PATIENCE_MS)


def opened(tab: Page, prompt: str) -> Locator:
    """The dialog, for a prompt and an even seed: others are withheld here."""
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    tab.get_by_label("Seed", exact=True).fill("2")
    tab.get_by_role("button", name="Draw a grid …").click()
    return tab.get_by_role("dialog", name="A grid of pictures")


def ask(dialog: Locator, across: tuple[str, str], down: tuple[str, str] = ("nothing", "")) -> None:
    for side, (kind, values) in (("across", across), ("down", down)):
        dialog.get_by_label(side.capitalize(), exact=True).select_option(label=kind)
        dialog.get_by_label(f"Values {side}").fill(values)
    dialog.get_by_role("button", name="Draw it").click()


def expect_standing(dialog: Locator, prompt: str, standing: str) -> None:
    """What the newest grid's line says, once that grid is shown."""
    expect(dialog.locator("#grid-earlier option:checked")).to_contain_text(prompt)
    expect(dialog.locator("#grid-standing")).to_have_text(standing)


def test_a_grid_fills_itself(page: Watched) -> None:
    tab = page.page
    dialog = opened(tab, "a red circle")
    ask(dialog, ("Seed", "2, 4-4, 6"), ("Words in the prompt", 'red, "green, dark"'))
    table = dialog.get_by_role("table")
    expect(table.get_by_role("columnheader")).to_have_text(["2", "4", "6"])
    expect(table.get_by_role("rowheader")).to_have_text(["red", "green, dark"])
    expect_standing(dialog, "a red circle", "6 of 6 drawn")
    expect(table.get_by_role("img")).to_have_count(6)
    expect(dialog.get_by_role("button", name="Cancel the grid")).to_be_hidden()
    batch = httpx.get(f"{page.url}/batches").json()["batches"][0]
    cells = httpx.get(f"{page.url}/batches/{batch['batch_id']}").json()["cells"]
    jobs = [httpx.get(f"{page.url}/result/{cell['job_id']}").json()["request"] for cell in cells]
    assert [(job["seed"], job["prompt"]) for job in jobs] == [
        (seed, f"a {word} circle") for word in ("red", "green, dark") for seed in (2, 4, 6)
    ]


def test_a_picture_of_a_grid_is_opened_and_begun_with(page: Watched) -> None:
    tab = page.page
    dialog = opened(tab, "a blue circle")
    ask(dialog, ("Steps", "12, 14"))
    dialog.get_by_role("button", name="Open Steps 14").click()
    viewer = tab.get_by_role("dialog", name="Image")
    expect(viewer.locator("dt:text-is('Steps') + dd")).to_have_text("14")
    viewer.get_by_role("button", name="Begin with this").click()
    expect(dialog).to_be_hidden()
    expect(tab.get_by_alt_text("The image to begin with")).to_be_visible()


def test_the_sheet_and_all_pictures_are_saved(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    dialog = opened(tab, "a circle to save")
    ask(dialog, ("Sampler", "Euler a, dpmpp_2m_karras"))
    expect_standing(dialog, "a circle to save", "2 of 2 drawn")
    with tab.expect_download() as sheet:
        dialog.get_by_role("button", name="Contact sheet").click()
    sheet.value.save_as(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
    with tab.expect_download() as archive:
        dialog.get_by_role("button", name="All pictures").click()
    archive.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as files:
        assert len([name for name in files.namelist() if name.endswith(".png")]) == 2


def test_a_lora_s_weight_is_an_axis(page: Watched) -> None:
    tab = page.page
    dialog = opened(tab, "a circle in ink")
    ask(dialog, ("LoRA ink: its weight", "0.5, -0.5"))
    expect_standing(dialog, "a circle in ink", "2 of 2 drawn")
    jobs = httpx.get(f"{page.url}/jobs?limit=100").json()["jobs"]
    loras = [job["request"]["loras"] for job in jobs if job["request"]["prompt"] == "a circle in ink"]
    assert sorted(lora["weight"] for [lora] in loras) == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("Seed", "", "An axis needs values, such as 1, 2, 3."),
        ("Steps", "12, many", "“many” is no number."),
        ("Seed", "9-2", "9-2 is no range: from the least to the most, at most 1000 numbers."),
        ("Sampler", "magic", "“magic” is no sampler: write its name as the list of samplers has it."),
        ("Words in the prompt", "red", "Words: first what stands in the prompt, then what stands there instead."),
        ("Words in the prompt", "absent, there", "no prompt of the request has the text that an axis replaces"),
        ("Seed", '4, "1"2', '"1"2: quotes stand around a whole value.'),
    ],
)
def test_what_can_t_be_an_axis_is_said(page: Watched, kind: str, values: str, problem: str) -> None:
    tab = page.page
    dialog = opened(tab, "a red circle")
    ask(dialog, (kind, values))
    expect(dialog.get_by_role("alert")).to_have_text(problem)
    page.refusals = {422}  # what only the service can tell


def test_a_refused_cell_says_why(page: Watched) -> None:
    tab = page.page
    dialog = opened(tab, "a circle")
    ask(dialog, ("Steps", "20, 5000"))
    expect(dialog.get_by_role("cell").filter(has_text="steps is 5000, outside 10..50")).to_be_visible()
    expect_standing(dialog, "a circle", "1 of 2 drawn, 1 not")


def test_a_grid_of_more_cells_than_are_fetched_at_once(page: Watched) -> None:
    """They are refused, as drawing a thousand would take long."""
    tab = page.page
    dialog = opened(tab, "many circles")
    ask(dialog, ("Seed", "1-501"), ("Steps", "5000, 6000"))
    expect_standing(dialog, "many circles", "0 of 1002 drawn, 1002 not")
    expect(dialog.get_by_role("cell").filter(has_text="outside 10..50")).to_have_count(1002)


def test_with_a_key(browser: Browser, keyed: tuple[str, str]) -> None:
    url, key = keyed
    with watched(browser, url) as one:
        one.refusals = {401}
        tab = one.page
        tab.get_by_role("textbox", name="Key").fill(key)
        tab.get_by_role("button", name="Use it").click()
        dialog = opened(tab, "a circle of hers")
        ask(dialog, ("Seed", "2, 4"))
        expect(dialog.get_by_role("img")).to_have_count(2)
