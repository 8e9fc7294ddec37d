"""The text encoder as a Serve deployment: shared batches, a cache in front of them, failures that stay alone."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle
from safetensors.numpy import save_file

from deployments.config import TextEncoderSettings
from deployments.dispatch import Dispatch
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.config import DeviceSettings, IpAdapterSettings
from deployments.engine.errors import CheckpointError, InvalidRequest, UnknownCheckpoint
from deployments.engine.types import Conditioning, ReferencePicture, TextEncodingRequest
from deployments.text_encoder import TextEncoder
from tests.ip_adapters import PATCHES, PROJECTION, write_image_encoder
from tests.ray_cluster import RayCluster
from tests.tiny_checkpoints import TEXT_2_CHANNELS, TEXT_CHANNELS, write_tiny_sd15

pytestmark = pytest.mark.ray

APP = "text-encoder"


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_encoder(tmp_path_factory.mktemp("image-encoder"))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of textual inversions, empty at first."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def handle(
    ray_serve: RayCluster, tiny_sd15: Path, tiny_sdxl: Path, image_encoder: Path, embeddings: Path
) -> Iterator[DeploymentHandle]:
    settings = TextEncoderSettings(
        device=DeviceSettings(cpu_threads=1), max_batch=8, cache_entries=32, embeddings=str(embeddings)
    )
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sd15-variant": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
    }
    deployment = serve.deployment(TextEncoder).options(
        ray_actor_options={"num_cpus": 0.1, "num_gpus": 0}, max_ongoing_requests=256
    )
    adapters = IpAdapterSettings(encoders=(str(image_encoder),), max_batch=8)
    yield serve.run(deployment.bind(settings, catalogue, ip_adapters=adapters), name=APP, route_prefix=None)
    serve.delete(APP)


def encode(handle: DeploymentHandle, *requests: TextEncodingRequest) -> list[Conditioning]:
    """All at once."""
    return [response.result() for response in [handle.encode.remote(request) for request in requests]]


def asked(prompt: str, checkpoint: str = "sd15", negative_prompt: str | None = "") -> TextEncodingRequest:
    return TextEncodingRequest(checkpoint, prompt, negative_prompt)


def test_without_a_claim_it_sees_no_gpu(handle: DeploymentHandle) -> None:
    description = handle.describe.remote().result()
    assert (description.device, description.claim, description.visible_devices) == ("cpu", 0, "")


def test_sixteen_prompts_share_four_batches_at_most_and_repeated_ones_need_none(handle: DeploymentHandle) -> None:
    prompts = [asked(f"a cat number {number}") for number in range(16)]
    before = handle.stats.remote().result()
    first = encode(handle, *prompts)
    between = handle.stats.remote().result()
    again = encode(handle, *prompts)
    after = handle.stats.remote().result()

    assert 1 <= between.batches - before.batches <= 4
    assert 1 <= between.forwards - before.forwards <= 4
    assert between.texts - before.texts == 16  # the empty negative prompt was encoded at the start
    assert after.batches == between.batches
    assert after.hits - between.hits == 32
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.positive.hidden_states, other.positive.hidden_states)


def test_an_embedding_does_not_depend_on_what_shares_its_batch(handle: DeploymentHandle) -> None:
    (alone,) = encode(handle, asked("a red cat", negative_prompt=None))
    others = [asked(f"dog {number}") for number in range(40)]  # more than the cache holds: all is encoded anew
    *_, together = encode(handle, *others, asked("a red cat", negative_prompt=None))
    assert np.array_equal(alone.positive.hidden_states, together.positive.hidden_states)


def test_a_text_that_is_on_its_way_is_not_encoded_twice(handle: DeploymentHandle) -> None:
    before = handle.stats.remote().result()
    encode(handle, *[asked("the same for all")] * 8)
    assert handle.stats.remote().result().texts - before.texts == 1


def test_variants_share_encodings(handle: DeploymentHandle) -> None:
    encode(handle, asked("shared"))
    before = handle.stats.remote().result()
    encode(handle, asked("shared", "sd15-variant"))
    assert handle.stats.remote().result().batches == before.batches


def test_textual_inversions_come_and_go(handle: DeploymentHandle, embeddings: Path) -> None:
    def encoded_otherwise_than(before: Conditioning) -> Conditioning:
        until = time.monotonic() + 60
        while True:
            (now,) = encode(handle, asked("a style cat"))
            if not np.array_equal(now.positive.hidden_states, before.positive.hidden_states):
                return now
            assert time.monotonic() < until
            time.sleep(0.1)

    (plain,) = encode(handle, asked("a style cat"))
    assert plain.positive.inversion_hashes == {}
    hashes = []
    before = plain
    for seed in (0, 1):  # the second in the first one's place
        vectors = np.random.default_rng(seed).normal(size=(2, TEXT_CHANNELS)).astype(np.float32)
        save_file({"emb_params": vectors}, embeddings / "style.safetensors.new")
        (embeddings / "style.safetensors.new").replace(embeddings / "style.safetensors")
        before = encoded_otherwise_than(before)
        hashes.append(before.positive.inversion_hashes["style"])
    assert len(set(hashes)) == 2
    (embeddings / "style.safetensors").unlink()
    again = encoded_otherwise_than(before)
    assert np.array_equal(again.positive.hidden_states, plain.positive.hidden_states)


def test_a_checkpoint_that_comes_with_its_requests(handle: DeploymentHandle, tiny_sd15: Path, tmp_path: Path) -> None:
    def brought(name: str, folder: Path) -> TextEncodingRequest:
        return TextEncodingRequest(name, "brought", "", spec=CheckpointSpec(family="sd15", source=str(folder)))

    def known() -> set[str]:
        return set(handle.describe.remote().result().checkpoints)

    before = known()
    own = write_tiny_sd15(tmp_path / "own", seed=11)
    requests = [brought("own@1", own), brought("own@2", own), brought("twin@1", tiny_sd15)]
    for request in requests:
        handle.check.remote(request).result()
    first, second, twin = encode(handle, *requests)
    (usual,) = encode(handle, asked("brought"))
    assert np.array_equal(first.positive.hidden_states, second.positive.hidden_states)
    assert not np.array_equal(first.positive.hidden_states, usual.positive.hidden_states)
    assert np.array_equal(twin.positive.hidden_states, usual.positive.hidden_states)
    encode(handle, asked("brought", "own@1"))  # it is known by its name from then on
    with pytest.raises(CheckpointError):
        encode(handle, brought("broken@1", tmp_path / "nothing"))
    assert known() == before | {"own@1", "own@2", "twin@1"}
    # of two with the same encoders the first goes, and nothing that the second needs
    handle.retain.remote(["own@2"], Dispatch("test")).result()
    assert known() == before | {"own@2"}
    (again,) = encode(handle, TextEncodingRequest("own@2", "another text", None))
    assert again.positive.hidden_states.shape == (77, TEXT_CHANNELS)
    handle.retain.remote([], Dispatch("test")).result()
    assert known() == before
    with pytest.raises(UnknownCheckpoint):
        encode(handle, asked("brought", "own@2"))
    (once_more,) = encode(handle, brought("own@3", own))
    assert np.array_equal(once_more.positive.hidden_states, first.positive.hidden_states)
    encode(handle, asked("usual", "sd15-variant"))
    handle.retain.remote([], Dispatch("test")).result()


def test_shapes(handle: DeploymentHandle) -> None:
    plain, guided = encode(handle, asked("a", negative_prompt=None), asked("a", "sdxl", "b"))
    assert plain.negative is None
    assert plain.positive.hidden_states.shape == (77, TEXT_CHANNELS)
    assert guided.negative is not None
    assert guided.negative.hidden_states.shape == (77, TEXT_CHANNELS + TEXT_2_CHANNELS)
    assert guided.positive.pooled is not None


def test_a_bad_text_fails_alone(handle: DeploymentHandle) -> None:
    good = [handle.encode.remote(asked(f"good {number}")) for number in range(4)]
    bad = handle.encode.remote(TextEncodingRequest("sd15", "bad", None, clip_skip=99))
    with pytest.raises(InvalidRequest, match="clip_skip"):
        bad.result()
    assert all(isinstance(response.result(), Conditioning) for response in good)
    with pytest.raises(UnknownCheckpoint):
        encode(handle, asked("x", "nothing"))


def test_a_prompt_that_changes_is_encoded_once_for_each_text(handle: DeploymentHandle) -> None:
    before = handle.stats.remote().result()
    (changing,) = encode(handle, TextEncodingRequest("sd15", "[a (fox:1.2)|a hen BREAK outside]", "", steps=4))
    assert handle.stats.remote().result().texts - before.texts == 2
    assert [edit.step for edit in changing.edits] == [1, 2, 3]
    assert (changing.tokens, changing.filled_up) == (154, True)
    # also on the other side of a process border what comes again is there once
    assert changing.edits[1].positive is changing.positive
    assert changing.edits[0].negative is changing.negative


def test_a_text_that_is_too_long_names_its_field(handle: DeploymentHandle) -> None:
    long = "word BREAK " * 9
    for request, field in (
        (asked(long), "prompt"),
        (asked("a", negative_prompt=long), "negative_prompt"),
        (TextEncodingRequest("sdxl", "a", "b", negative_prompt_2=long), "negative_prompt_2"),
        (TextEncodingRequest("sd15", "a", None, prompt_2="b"), "prompt_2"),
    ):
        for call in (handle.encode, handle.check):
            with pytest.raises(InvalidRequest, match=f"{field} (has 36 tokens, which take 9 ch|has no eff)") as refused:
                call.remote(request).result()
            assert getattr(refused.value, "cause", refused.value).field == field  # (Ray wraps what was raised)
    before = handle.stats.remote().result()
    assert handle.check.remote(asked("a text that may be encoded")).result() is None
    with pytest.raises(InvalidRequest, match="clip_skip"):
        handle.check.remote(TextEncodingRequest("sd15", "a", None, clip_skip=99)).result()
    assert handle.stats.remote().result() == before


def referring(number: int, *, patches: bool = False, channels: int | None = None) -> TextEncodingRequest:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
    own = PATCHES if patches else PROJECTION
    picture = ReferencePicture(pixels, patches, own if channels is None else channels)
    return TextEncodingRequest("sd15", "a cat", None, references=(picture,))


def test_sixteen_references_share_three_batches_at_most_and_repeated_ones_need_none(
    handle: DeploymentHandle, image_encoder: Path
) -> None:
    requests = [referring(number) for number in range(16)]
    before = handle.stats.remote().result()
    first = encode(handle, *requests)
    between = handle.stats.remote().result()
    encode(handle, *requests)
    after = handle.stats.remote().result()
    assert between.pictures - before.pictures == 16
    assert between.picture_forwards - before.picture_forwards <= 3
    assert after.pictures == between.pictures
    own = ImageEncoder(str(image_encoder), torch.device("cpu"), torch.float32)
    for request, encoded in zip(requests, first, strict=True):
        (alone,) = own.projections([request.references[0].pixels])
        np.testing.assert_allclose(encoded.references[0].positive, alone.positive, rtol=0, atol=1e-5)
    (patches,) = encode(handle, referring(0, patches=True))
    assert patches.references[0].positive.shape == (17, PATCHES)


def test_a_reference_that_no_image_encoder_is_for_fails_alone(handle: DeploymentHandle) -> None:
    good = [handle.encode.remote(referring(100 + number)) for number in range(3)]
    with pytest.raises(InvalidRequest, match="takes 1280 channels of a picture, which no image encoder"):
        handle.encode.remote(referring(1, channels=1280)).result()
    assert all(response.result().references for response in good)
