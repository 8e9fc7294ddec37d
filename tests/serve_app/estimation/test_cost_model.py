"""What a generation will cost is what its like has cost, by rows, pixels and steps."""

import numpy as np
import pytest

from serve_app.config.settings import Settings
from serve_app.estimation.cost_model import CostModel, LearnedCost, Mean, StageWork
from serve_app.images.decode import Source, SourceImage
from serve_app.planning.plan import Plan, plan_generation
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated


def planned(settings: Settings, **fields: object) -> Plan:
    source = Source(SourceImage(np.zeros((256, 256, 3), np.uint8), "0" * 64), None) if "image" in fields else None
    request = validated(GenerationRequest, {"prompt": "x", **fields})
    return plan_generation(resolve(request, settings, drawn_seed=1, source=source).generation, settings)


def learn(model: CostModel, one: Plan, *step_s: float, shared: float = 1.0) -> None:
    """Lanes of this plan take steps of so many seconds in each of its stages."""
    for stage, seconds in zip(one.stages, step_s, strict=True):
        for _ in range(5):
            steps = 4 / (stage.steps * (stage.denoising_end - stage.denoising_start))
            model.stepped(stage, steps, device_s=4 * seconds * shared, step_s=4 * seconds)


def predicted(model: CostModel, one: Plan) -> tuple[StageWork, ...]:
    found = model.predict(one.stages)
    assert found is not None
    return found


@pytest.fixture
def known(demo_settings: Settings) -> CostModel:
    """A step at 256 x 256 with guidance takes 0.1 s."""
    model = CostModel()
    learn(model, planned(demo_settings, steps=20), 0.1)
    return model


def test_nobody_knows_what_a_stage_costs_that_was_never_seen(demo_settings: Settings, known: CostModel) -> None:
    sdxl = planned(demo_settings, model="demo-sdxl")
    assert known.predict(sdxl.stages) is None
    assert CostModel().predict(sdxl.stages) is None


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"steps": 20}, 2.0),
        ({"steps": 50}, 5.0),
        ({"steps": 20, "guidance_scale": 1}, 1.0),
        ({"steps": 20, "width": 512, "height": 512}, 8.0),
        ({"steps": 20, "scheduler": "ddim"}, 2.0),
        ({"steps": 20, "image": "…", "strength": 0.25}, 0.5),
    ],
)
def test_cost_goes_by_rows_pixels_and_steps(
    demo_settings: Settings, known: CostModel, fields: dict[str, object], seconds: float
) -> None:
    [work] = predicted(known, planned(demo_settings, **fields))
    assert work == StageWork("sd15", pytest.approx(seconds), pytest.approx(seconds))


def test_each_kind_has_a_price_of_its_own_once_it_was_seen(demo_settings: Settings, known: CostModel) -> None:
    large = {"steps": 20, "width": 512, "height": 512}
    learn(known, planned(demo_settings, **large), 1.0)
    learn(known, planned(demo_settings, steps=20, scheduler="heun"), 0.2)
    assert predicted(known, planned(demo_settings, **large))[0].device_s == pytest.approx(20.0)
    assert predicted(known, planned(demo_settings, steps=20, scheduler="heun"))[0].device_s == pytest.approx(4.0)
    assert predicted(known, planned(demo_settings, steps=20))[0].device_s == pytest.approx(2.0)
    nearer = predicted(known, planned(demo_settings, steps=20, width=512, height=384))[0]
    assert nearer.device_s == pytest.approx(15.0), "the most similar size is the measure"


def test_what_lanes_share_costs_each_of_them_less_and_takes_no_less_time(demo_settings: Settings) -> None:
    model = CostModel()
    one = planned(demo_settings, steps=20)
    learn(model, one, 0.1, shared=0.25)
    assert predicted(model, one)[0] == StageWork("sd15", pytest.approx(0.5), pytest.approx(2.0))


def test_two_stages_are_two_prices_and_the_last_one_decodes(demo_settings: Settings) -> None:
    model = CostModel()
    one = planned(demo_settings, model="demo-sdxl", steps=20)
    learn(model, one, 0.1, 0.2)
    model.decoded(one.stages[-1], 0.5)
    base, refiner = predicted(model, one)
    assert (base.stage, base.device_s) == ("sdxl_base", pytest.approx(1.6))
    assert (refiner.stage, refiner.device_s) == ("sdxl_refiner", pytest.approx(0.8 + 0.5))
    larger = planned(demo_settings, model="demo-sdxl", steps=20, width=512)
    assert predicted(model, larger)[1].device_s == pytest.approx(2 * (0.8 + 0.5))


def test_a_change_of_cost_is_followed(demo_settings: Settings, known: CostModel) -> None:
    one = planned(demo_settings, steps=20)
    for _ in range(20):
        learn(known, one, 0.3)
    assert predicted(known, one)[0].device_s == pytest.approx(6.0, rel=0.05)


def test_only_so_many_kinds_are_remembered(demo_settings: Settings, known: CostModel) -> None:
    one = planned(demo_settings, steps=20).operation
    for pixels in range(1, 400):
        learn(known, plan_generation(one.model_copy(update={"width": 8 * pixels}), demo_settings), 0.1)
    assert len(known._costs) == 256


def test_what_one_has_learned_another_begins_with(demo_settings: Settings) -> None:
    one, two = CostModel(), CostModel()
    asked = planned(demo_settings, model="demo-sdxl", steps=20)
    learn(one, asked, 0.1, 0.2)
    one.decoded(asked.stages[-1], 0.5)
    two.begin_with(one.unsaved())
    assert predicted(two, asked) == predicted(one, asked)
    assert (one.unsaved(), two.unsaved()) == ((), ()), "nothing is new"
    learn(two, planned(demo_settings, steps=20), 0.1)
    assert [(cost.stage, cost.sampler) for cost in two.unsaved()] == [("sd15", "dpmpp_2m")]


@pytest.mark.parametrize(
    "unusable",
    [
        LearnedCost("sd15", "euler", 0, 1.0, 1.0),
        LearnedCost("sd15", "", 64, 1.0, 1.0),
        LearnedCost("sd15", "euler", 64, 0.0, 1.0),
        LearnedCost("sd15", "euler", 64, float("nan"), 1.0),
        LearnedCost("sd15", "euler", 64, 1.0, float("inf")),
        LearnedCost("sd15", "euler", -64, 1.0, 1.0),
        LearnedCost("a stage of other software", "euler", 64, 1.0, 1.0),
    ],
)
def test_what_makes_no_prediction_is_ignored(demo_settings: Settings, known: CostModel, unusable: LearnedCost) -> None:
    model, asked = CostModel(), planned(demo_settings, steps=20)
    model.begin_with([unusable])
    assert model.predict(asked.stages) is None
    model.begin_with([*known.unsaved(), unusable])
    assert predicted(model, asked) == predicted(known, asked)


def test_of_what_others_have_learned_the_latest_kinds_are_taken(demo_settings: Settings) -> None:
    model = CostModel()
    model.begin_with(LearnedCost("sd15", "euler", pixels, 1.0, 1.0) for pixels in range(1, 400))
    assert [kind.pixels for kind in model._costs] == list(range(144, 400))


def test_a_mean_follows_its_values() -> None:
    mean = Mean(0.1)
    assert mean.value == 0.0
    for value in (4.0, 2.0):
        mean.add(value)
    assert mean.value == 3.0, "the first ones count alike"
    for _ in range(100):
        mean.add(1.0)
    assert mean.value == pytest.approx(1.0, abs=0.01)
    settled = Mean(0.1, 2.0)
    settled.add(3.0)
    assert settled.value == pytest.approx(2.1)
