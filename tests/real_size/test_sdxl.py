"""SDXL at its real size in bfloat16: from a diffusers folder and a single file, by one stage with room for one."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.real_checkpoints import write_checkpoint
from tests.ldm_export import export_ldm
from tests.real_size import checkpoints
from tests.real_size.service import REQUESTS, RealService, difference, running

pytestmark = pytest.mark.real_size

logger = logging.getLogger(__name__)

RANK = 64
# weights of 5 GiB: two steps show as much as four
MODEL = {"family": "sdxl", **REQUESTS, "defaults": {**REQUESTS["defaults"], "steps": 2}}


def _write_folder(path: Path) -> None:
    write_checkpoint(path, "sdxl", drawn_in=torch.bfloat16)


def _write_single(path: Path) -> None:
    folder = write_checkpoint(path.with_name("of-single-xl-file"), "sdxl", seed=1, drawn_in=torch.bfloat16)
    export_ldm(folder, path)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with checkpoints.folder() as folder:
        whole = str(checkpoints.written(folder / "sdxl", _write_folder))
        single = str(checkpoints.written(folder / "sdxl.safetensors", _write_single))
        loras = folder / "sdxl-loras"
        loras.mkdir(exist_ok=True)
        checkpoints.written(loras / "large.safetensors", lambda path: checkpoints.write_lora(path, "sdxl", RANK))
        models = {
            "folder": {"source": whole, **MODEL},
            "single": {"source": single, **MODEL},
            # its replica shows what a process takes without checkpoints of a size
            "demo-sd15": {"family": "sd15", "source": "package:demo_models/demo-sd15", **REQUESTS},
        }
        half = {"dtype": "bfloat16"}
        stages = {
            "text_encoder": {"device": half},
            "sdxl_base": {"engine": {**half, "memory_gib": 7.0, "max_rows": 2}},
            "sd15": {"engine": {**half, "max_rows": 2}},
        }
        settings = {"loras": {"folder": str(loras), "resident_mib": 512}}
        with running(models, stages, tmp_path_factory.mktemp("service"), **settings) as one:
            one.figures["ready_s"] = one.ready_s
            one.figures["lora_mib"] = (loras / "large.safetensors").stat().st_size / (1 << 20)
            yield one
            logger.info("SDXL: %s", one.figures)


def test_each_source_is_drawn_and_swapped(service: RealService) -> None:
    first, first_took = service.draw("folder")
    again, again_took = service.draw("folder")
    single, single_took = service.draw("single")
    back, back_took = service.draw("folder")
    service.draw("demo-sd15")
    service.figures.update(
        first_image=first_took,
        image=again_took,
        swap_to_single=single_took,
        swap_to_folder=back_took,
        peak_before_loras_mib=service.peak_mib("SDXLBase"),
    )
    assert difference(first, again) == difference(first, back) == 0
    assert difference(first, single) > 10  # other weights


def test_a_lora_of_a_real_rank_counts(service: RealService) -> None:
    service.draw("folder")
    plain, plain_took = service.draw("folder")
    lora, first_took = service.draw("folder", loras=[{"name": "large", "weight": 1.0}])
    again, again_took = service.draw("folder", loras=[{"name": "large", "weight": 1.0}])
    service.figures.update(without_lora=plain_took, first_with_lora=first_took, with_lora=again_took)
    assert difference(plain, lora) > 1
    assert difference(lora, again) == 0


def test_memory_is_as_planned(service: RealService) -> None:
    """After all else."""
    service.check_memory("SDXLBase", ("folder", "single"), ("SD15", "demo-sd15"))
