"""SD1.5 at its real size: from a diffusers folder, its fp16 files and a single file, by one stage with room for one."""

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


def _write_both(path: Path) -> None:
    """In float32, and beside it in float16, as published."""
    write_checkpoint(path, "sd15", dtype=torch.float32)
    write_checkpoint(path, "sd15", variant="fp16")


def _write_single(path: Path) -> None:
    folder = write_checkpoint(path.with_name("of-single-file"), "sd15", seed=1)
    export_ldm(folder, path)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with checkpoints.folder() as folder:
        both = str(checkpoints.written(folder / "sd15", _write_both))
        single = str(checkpoints.written(folder / "sd15.safetensors", _write_single))
        loras = folder / "sd15-loras"
        loras.mkdir(exist_ok=True)
        checkpoints.written(loras / "large.safetensors", lambda path: checkpoints.write_lora(path, "sd15", RANK))
        models = {
            "folder": {"family": "sd15", "source": both, **REQUESTS},
            "half": {"family": "sd15", "source": both, "variant": "fp16", **REQUESTS},
            "single": {"family": "sd15", "source": single, **REQUESTS},
            # its replica shows what a process takes without checkpoints of a size
            "demo-sdxl": {"family": "sdxl", "source": "package:demo_models/demo-sdxl", **REQUESTS},
        }
        stages = {"sd15": {"engine": {"memory_gib": 5.0, "max_rows": 2}}, "sdxl_base": {"engine": {"max_rows": 2}}}
        settings = {"loras": {"folder": str(loras), "resident_mib": 256}}
        with running(models, stages, tmp_path_factory.mktemp("service"), **settings) as one:
            one.figures["ready_s"] = one.ready_s
            one.figures["lora_mib"] = (loras / "large.safetensors").stat().st_size / (1 << 20)
            yield one
            logger.info("SD1.5: %s", one.figures)


def test_each_source_is_drawn_and_swapped(service: RealService) -> None:
    first, first_took = service.draw("folder")
    again, again_took = service.draw("folder", seed=4)
    half, half_took = service.draw("half")
    single, single_took = service.draw("single")
    back, back_took = service.draw("folder")
    service.draw("demo-sdxl")
    service.figures.update(
        first_image=first_took,
        image=again_took,
        swap_to_half=half_took,
        swap_to_single=single_took,
        swap_to_folder=back_took,
    )
    assert difference(first, again) == difference(first, back) == 0
    assert difference(first, half) < 3  # the same weights, rounded
    assert difference(first, single) > 10  # others


def test_a_lora_of_a_real_rank_counts(service: RealService) -> None:
    service.draw("folder")
    plain, plain_took = service.draw("folder")
    lora, first_took = service.draw("folder", loras=[{"name": "large", "weight": 1.0}])
    again, again_took = service.draw("folder", loras=[{"name": "large", "weight": 1.0}])
    none, _ = service.draw("folder", loras=[{"name": "large", "weight": 0.0}])
    service.figures.update(without_lora=plain_took, first_with_lora=first_took, with_lora=again_took)
    assert difference(plain, lora) > 1
    assert difference(lora, again) == 0
    assert difference(plain, none) < 0.5


def test_a_prompt_of_words_that_clip_knows(service: RealService) -> None:
    """CLIP's own vocabulary: of many words few tokens, and of other words other pictures."""
    words = "an astronaut riding a horse, photograph, highly detailed, golden hour, bokeh, 35mm film grain " * 6
    long, _ = service.draw("folder", prompt=words)
    other, _ = service.draw("folder", prompt=words.replace("horse", "camel"))
    assert difference(long, other) > 0


def test_memory_is_as_planned(service: RealService) -> None:
    """After all else."""
    service.check_memory("SD15", ("folder", "half", "single"), ("SDXLBase", "demo-sdxl"))
