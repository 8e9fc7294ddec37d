"""The benchmark of what steers: every way draws on random files of every kind, and has its row."""

from pathlib import Path

import pytest
import torch

from benchmarks.pipelines import load_for
from benchmarks.steering import Cost, Steered, detail_pass, main, measured, table, ways_of
from benchmarks.steering_files import ADAPTERS, write_all
from benchmarks.workload import Workload
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.family import FamilyName


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_way_draws(family: FamilyName, tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    source = tiny_sd15 if family == "sd15" else tiny_sdxl
    workload = Workload(
        spec=CheckpointSpec(family=family, source=str(source)), random_weights=False, width=64, height=64, steps=3,
        sampler="euler", guidance_scale=5.0, device="cpu", dtype="float32", cpu_threads=1, seconds=1.0,
    )  # fmt: skip
    write_all(tmp_path, load_for(workload, torch.device("cpu"), torch.float32).unet)
    assert {file.stem for file in (tmp_path / "loras").iterdir()} == set(ADAPTERS)
    ways = ways_of(64, 64)
    with Steered(workload, tmp_path) as steered:
        alone, among = (measured(steered, ways, 1, beside) for beside in (0, 1))
        whole, part = detail_pass(steered, workload, 1)
    rows = {name: cost.rows for name, cost in alone.items()}
    assert rows.pop("no guidance at the step") == 1
    assert rows.pop("a third row (AND, as PAG would take)") == 3
    assert (rows.pop("two regions"), rows.pop("two regions with a LoRA each")) == (4, 4)
    assert set(rows.values()) == {2}
    assert {name: cost.rows for name, cost in among.items()} == {name: cost.rows + 2 for name, cost in alone.items()}
    assert min(whole, part, *(cost.median for cost in alone.values())) > 0


def test_the_table() -> None:
    costs = {"plain": Cost(2, (0.1, 0.2, 0.12)), "more": Cost(4, (0.18, 0.18, 0.3))}
    assert table(costs, {}).splitlines() == [
        "       rows   ms a step alone  of the plain one",
        "-----  ----  ----------------  ----------------",
        "plain     2  120 (100 to 200)              1.00",
        "more      4  180 (180 to 300)              1.50",
    ]
    assert "of four plain ones" in table(costs, costs)


def test_a_checkpoint_of_no_known_family_isn_t_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "none/of/these"]) == 2
    assert "benchmarks.steering: none/of/these: say its --family" in capsys.readouterr().err
