"""With logical GPUs, the cluster configuration puts each stage where its claim says."""

import pytest

from deployments.replica import StageDescription
from tests.e2e.service import STAGES, Service

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def descriptions(service: Service) -> dict[str, StageDescription]:
    return service.placed


def test_each_replica_has_its_claim_and_sees_one_device(
    service: Service, descriptions: dict[str, StageDescription]
) -> None:
    for stage, description in descriptions.items():
        assert description.name == STAGES[stage]
        assert description.claim == getattr(service.settings.stages, stage).num_gpus
        assert len(description.gpu_ids) == 1, stage
        assert description.visible_devices == description.gpu_ids[0]


def test_fractions_share_a_gpu_and_whole_ones_are_alone(descriptions: dict[str, StageDescription]) -> None:
    gpu = {stage: description.gpu_ids[0] for stage, description in descriptions.items()}
    assert gpu["sdxl_base"] != gpu["sdxl_refiner"]
    shared = {gpu["text_encoder"], gpu["sd15"], gpu["nsfw_classifier"]}
    assert len(shared) == 1
    assert not shared & {gpu["sdxl_base"], gpu["sdxl_refiner"]}


def test_no_gpu_is_claimed_twice(descriptions: dict[str, StageDescription]) -> None:
    claimed: dict[str, float] = {}
    for description in descriptions.values():
        claimed[description.gpu_ids[0]] = claimed.get(description.gpu_ids[0], 0.0) + description.claim
    assert all(total <= 1.0 + 1e-6 for total in claimed.values())


def test_logical_gpus_without_cuda_run_on_the_cpu(descriptions: dict[str, StageDescription]) -> None:
    assert {description.device for description in descriptions.values()} == {"cpu"}
