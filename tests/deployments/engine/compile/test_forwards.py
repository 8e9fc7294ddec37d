"""Steps by compiled forwards: the same images, other checkpoints' weights, and nothing lost where they can't be used.

One forward is compiled, by the first test that needs it; all others find it in its folder.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.workload import EngineContender, Job, Workload
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.compile.compiled_graph import CompiledGraph
from deployments.engine.compile.compiler import LIBRARY, SPEC
from deployments.engine.compile.spec import GraphSpec
from deployments.engine.config import EngineSettings, LoraSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointError, EngineStopped
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Lora
from deployments.engine.unet import UnetForward, UnetInputs
from tests.benchmarks.in_thread import run_in_thread
from tests.deployments.engine.listening import Listener, ask
from tests.loras import UNET_LAYERS, random_updates, write_kohya
from tests.lycoris_files import KINDS, modules, write_lycoris
from tests.tiny_checkpoints import write_shallow_sd15

Encode = Callable[..., Conditioning]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, CheckpointSpec]:
    folder = tmp_path_factory.mktemp("shallow")
    sources = {name: write_shallow_sd15(folder / name, seed) for name, seed in (("sd15", 7), ("other", 8))}
    return {name: CheckpointSpec(family="sd15", source=str(source)) for name, source in sources.items()}


@pytest.fixture
def make(checkpoints: Mapping[str, CheckpointSpec], tmp_path: Path) -> Iterator[Make]:
    """make(folder): an engine with one place for checkpoints that compiles into the folder, or not at all."""
    engines: list[Engine] = []

    def start(folder: Path | None, loras: LoraSettings | None = None, most: int = 1) -> Engine:
        given = {"device": "cpu", "cpu_threads": 1, "resident_checkpoints": 1}
        compiling = None if folder is None else {"folder": str(folder), "after_steps": 1, "most": most, "niceness": 0}
        engine = Engine(EngineSettings.model_validate(given | {"compile": compiling}), checkpoints, loras=loras)
        engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.stop()


async def settled(engine: Engine) -> None:
    """The compiler has done what it was asked for."""
    async with asyncio.timeout(500):
        while not (engine.stats().compiled or engine.stats().compile_failures):  # noqa: ASYNC110  # a process's end
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def _wrapper_as_it_is() -> Iterator[None]:
    """The kernels are optimised, the code that calls them isn't: for one forward that takes longer than it saves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
        yield


@pytest.fixture(scope="module")
def folder(
    checkpoints: Mapping[str, CheckpointSpec], encode_sd15: Encode, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """With the forward for one lane with guidance at 64 x 64, compiled by an engine that met it once."""
    made = tmp_path_factory.mktemp("private") / "graphs"
    compiling = {"folder": str(made), "after_steps": 1, "most": 1, "niceness": 0}  # everybody waits for it
    engine = Engine(
        EngineSettings.model_validate({"device": "cpu", "cpu_threads": 1, "compile": compiling}), checkpoints
    )
    engine.start()

    async def once() -> None:
        async for _ in engine.stream(ask(), encode_sd15("a red circle")):
            pass
        await settled(engine)

    asyncio.run(once())
    stats = engine.stats()
    engine.stop()
    assert (stats.compiled, stats.compile_failures) == (("2 x 64 x 64, 77 tokens",), 0)
    return made


def steps(engine: Engine) -> int:
    return engine.stats().compiled_steps_total


def latents(results: list[DenoiseResult]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(result.latents) for result in results if result.latents is not None])


def drawn(run_together: RunTogether, engine: Engine, text: Conditioning, **changes: object) -> torch.Tensor:
    return latents(run_together(engine, [(ask(output="latents", **changes), text)]))


def test_a_compiled_forward_draws_the_same_image(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path
) -> None:
    text = encode_sd15("a red circle")
    compiled, plain = make(folder), make(None)
    wanted = drawn(run_together, plain, text)
    assert (drawn(run_together, compiled, text) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (steps(compiled), steps(plain)) == (6, 0), "found in its folder, from the first step on"


def test_a_swap_of_checkpoints_compiles_nothing(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path
) -> None:
    text = encode_sd15("a red circle")
    compiled, plain = make(folder), make(None)
    for number, name in enumerate(("sd15", "other", "sd15"), start=1):
        wanted = drawn(run_together, plain, text, checkpoint=name)
        assert (drawn(run_together, compiled, text, checkpoint=name) - wanted).abs().max() < 1e-4 * wanted.abs().max()
        assert steps(compiled) == 6 * number
    assert compiled.stats().swaps_total == 2
    assert len(compiled.stats().compiled) == 1


def test_reproducible_lanes_keep_the_bits_that_they_have_without(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path
) -> None:
    text = encode_sd15("a red circle")
    compiled, plain = make(folder), make(None)
    found, wanted = (drawn(run_together, engine, text, reproducible=True) for engine in (compiled, plain))
    assert torch.equal(found, wanted)
    assert steps(compiled) == 0


def test_a_lane_with_a_lora_wears_it(
    make: Make,
    run_together: RunTogether,
    encode_sd15: Encode,
    folder: Path,
    checkpoints: Mapping[str, CheckpointSpec],
    tmp_path: Path,
) -> None:
    unet = UNet2DConditionModel.from_pretrained(checkpoints["sd15"].source, subfolder="unet", dtype=torch.float32)
    (tmp_path / "loras").mkdir()
    write_kohya(tmp_path / "loras" / "style.safetensors", {"unet": random_updates(unet, UNET_LAYERS, seed=1)})
    of_dora = {"unet": modules(unet, UNET_LAYERS, KINDS["DoRA of a LoKr"], seed=2)}
    write_lycoris(tmp_path / "loras" / "dora.safetensors", of_dora)
    loras = LoraSettings(folder=str(tmp_path / "loras"))
    text = encode_sd15("a red circle")
    compiled, plain = make(folder, loras), make(None, loras)
    worn = (Lora("style", 1.0), Lora("dora", 0.5))
    found, wanted = (drawn(run_together, engine, text, loras=worn) for engine in (compiled, plain))
    assert torch.equal(found, wanted)
    assert steps(compiled) == 0
    assert not torch.allclose(drawn(run_together, compiled, text), wanted)
    assert steps(compiled) == 6


def test_what_is_no_library_is_thrown_away_and_steps_go_on(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path, tmp_path: Path
) -> None:
    [name] = [path.name for path in folder.iterdir() if path.is_dir()]
    (tmp_path / "graphs" / name).mkdir(parents=True, mode=0o700)
    (tmp_path / "graphs").chmod(0o700)
    (tmp_path / "graphs" / name / LIBRARY).write_bytes(b"none")
    text = encode_sd15("a red circle")
    engine = make(tmp_path / "graphs")
    assert torch.equal(drawn(run_together, engine, text), drawn(run_together, make(None), text))
    assert (engine.stats().compile_failures, engine.stats().compiled, steps(engine)) == (1, (), 0)
    assert not (tmp_path / "graphs" / name).exists()


@dataclass
class Failing:
    """The calls of all compiled graphs, counted from 1; some fail as the library does, which doesn't say of what."""

    at: Callable[[int], bool]
    calls: int = 0

    def inject(self, monkeypatch: pytest.MonkeyPatch) -> None:
        call = CompiledGraph.__call__

        def counted(graph: CompiledGraph, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            self.calls += 1
            if self.at(self.calls):
                raise RuntimeError("AOTInductorModelContainerRun failed")
            return call(graph, tensors)

        monkeypatch.setattr(CompiledGraph, "__call__", counted)


def test_a_step_whose_graph_fails_is_taken_without_it(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = encode_sd15("a red circle")
    engine, plain = make(folder), make(None)
    wanted = drawn(run_together, plain, text)
    failing = Failing(at=lambda call: call in (1, 2, 5, 7))  # the trial twice, then two steps
    failing.inject(monkeypatch)
    assert (drawn(run_together, engine, text) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (failing.calls, steps(engine), engine.stats().compile_failures) == (7, 2, 0)
    drawn(run_together, engine, text)
    assert steps(engine) == 8


def test_one_that_fails_again_and_again_is_left_to_later_engines(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = encode_sd15("a red circle")
    engine, plain = make(folder), make(None)
    with monkeypatch.context() as injected:
        failing = Failing(at=lambda call: True)
        failing.inject(injected)
        assert torch.equal(drawn(run_together, engine, text), drawn(run_together, plain, text))
        assert (failing.calls, steps(engine), engine.stats().compile_failures) == (3, 0, 1)
    drawn(run_together, engine, text)
    assert steps(engine) == 0
    later = make(folder)
    drawn(run_together, later, text)
    assert steps(later) == 6


def test_memory_that_runs_out_while_one_is_tried_says_nothing_of_it(
    make: Make, run_together: RunTogether, encode_sd15: Encode, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_inputs, calls = GraphSpec.new_inputs, iter(range(100))

    def scarce(spec: GraphSpec, model: UNet2DConditionModel) -> UnetInputs:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("no room")
        return new_inputs(spec, model)

    monkeypatch.setattr(GraphSpec, "new_inputs", scarce)
    engine = make(folder)
    drawn(run_together, engine, encode_sd15("a red circle"))
    assert (steps(engine), engine.stats().compile_failures) == (5, 0)


def test_a_device_lost_while_one_is_tried_is_lost(
    make: Make, encode_sd15: Encode, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(spec: GraphSpec, model: UNet2DConditionModel) -> UnetInputs:
        raise torch.AcceleratorError("injected: an illegal memory access was encountered")

    monkeypatch.setattr(GraphSpec, "new_inputs", lost)
    listener = Listener()
    make(folder).submit(ask(), encode_sd15("a red circle"), listener)
    assert isinstance(listener.outcome(), EngineStopped)
    assert [path for path in folder.iterdir() if path.is_dir()], "it stays for the engine that comes after"


def test_nobody_else_may_write_where_libraries_are(make: Make, tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs").chmod(0o777)
    with pytest.raises(CheckpointError, match="can be written by others"):
        make(tmp_path / "graphs")


def test_a_folder_that_cannot_be_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"engine.compile.folder: .*file/graphs"):
        make(tmp_path / "file" / "graphs")


async def test_without_a_compiler_steps_go_on_and_it_is_asked_for_once(
    make: Make, encode_sd15: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    engine = make(tmp_path / "graphs", most=2)
    for size in (64, 72):
        asked = ask(output="latents", width=size)
        assert [event async for event in engine.stream(asked, encode_sd15("a red circle"))]
        await settled(engine)
    assert (engine.stats().compile_failures, engine.stats().compiled, steps(engine)) == (1, (), 0)
    assert [record.message for record in caplog.records if "no C++ compiler" in record.message]


def test_an_engine_that_stops_ends_its_compiler(
    make: Make, run_together: RunTogether, encode_sd15: Encode, tmp_path: Path
) -> None:
    engine = make(tmp_path / "graphs")
    run_together(engine, [(ask(), encode_sd15("a red circle"))])
    [compiler] = [one for one in psutil.Process().children() if str(tmp_path / "graphs") in one.cmdline()]
    engine.stop()
    assert not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE
    assert engine.stats().compiled == ()


def test_threads_call_it_at_once_and_what_it_borrows_goes_with_the_unet(folder: Path) -> None:
    [made] = [path for path in folder.iterdir() if path.is_dir()]
    spec = GraphSpec.from_json((made / SPEC).read_text())
    assert spec.name == made.name
    unet = spec.new_unet()
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    before = _references(unet)
    graph = CompiledGraph(made, UnetForward(unet).state_dict(), torch.device("cpu"), copies=2)
    given = [spec.new_inputs(unet) for _ in range(8)]

    def alone(inputs: UnetInputs) -> torch.Tensor:
        torch.set_num_threads(1)
        (output,) = graph(inputs.tensors)
        return output

    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        found = list(pool.map(alone, given))
        for inputs, output in zip(given, found, strict=True):
            torch.testing.assert_close(output, UnetForward(unet)(*inputs.all), rtol=1e-4, atol=1e-4)
    assert _references(unet) == before


def _references(unet: UNet2DConditionModel) -> list[int]:
    """To the memory of its weights."""
    return [torch._C._storage_Use_Count(weight.untyped_storage()._cdata) for weight in unet.parameters()]


@pytest.mark.parametrize("given", [1, 4])
def test_a_wrong_number_of_inputs_is_refused(folder: Path, given: int) -> None:
    [made] = [path for path in folder.iterdir() if path.is_dir()]
    unet = GraphSpec.from_json((made / SPEC).read_text()).new_unet()
    graph = CompiledGraph(made, UnetForward(unet).state_dict(), torch.device("cpu"), copies=1)
    with pytest.raises(RuntimeError, match="inputs for a graph with 3"):
        graph([torch.zeros(1)] * given)


@pytest.mark.parametrize("there", [True, False])
def test_a_benchmark_measures_what_is_compiled_or_says_why_not(
    checkpoints: Mapping[str, CheckpointSpec], folder: Path, tmp_path: Path, there: bool
) -> None:
    workload = Workload(
        spec=checkpoints["sd15"],
        random_weights=False,
        width=64,
        height=64,
        steps=2,
        sampler="euler",
        guidance_scale=5.0,
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        seconds=0.01,
    )
    compiling = {"folder": str(folder if there else tmp_path / "graphs"), "most": 1}
    contender = EngineContender(name="engine", settings={"compile": compiling}, compiling_s=0.0)
    report = run_in_thread(Job(workload=workload, contender=contender, concurrency=(1,)), 0.0, lambda _: None)
    assert report.failed is None
    (figures,) = report.figures
    if there:
        assert (figures.failed, figures.compiled_share) == (None, 1.0)
        assert figures.compiling_s is not None
    else:
        assert figures.failed == "nothing was compiled within 0 s"
