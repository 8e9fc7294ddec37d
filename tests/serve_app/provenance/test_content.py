"""What credentials say, read back by the library."""

from typing import Any

import pytest

from serve_app.images.encode import encode_image
from serve_app.provenance.content import definition_of
from serve_app.provenance.ingredients import archives_of, used_pictures
from serve_app.provenance.reading import Credentials, read_credentials
from serve_app.provenance.signer import ImageSigner
from serve_app.schemas.generation_request import BoxRequest, GenerationRequest
from serve_app.schemas.manifest import (
    DetailRecord,
    HiresRecord,
    ImageRecord,
    LoraRecord,
    Manifest,
    RegionRecord,
    SafetyRecord,
    UpscaleManifest,
)
from serve_app.schemas.upscale_request import UpscaleRequest
from tests.serve_app.images.pictures import encoded, sent
from tests.serve_app.images.test_encode import manifest, picture
from tests.serve_app.provenance.authorities import new_signer
from tests.serve_app.provenance.test_signer import JOB

TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def image_signer(tmp_path_factory: pytest.TempPathFactory) -> ImageSigner:
    return ImageSigner(new_signer().settings(tmp_path_factory.mktemp("signer")))


def upscaled(**changes: Any) -> UpscaleManifest:
    return UpscaleManifest(
        versions={},
        upscaler="lanczos",
        sha256="ab" * 32,
        source_width=8,
        source_height=8,
        width=16,
        height=16,
        device="cpu",
        dtype="uint8",
        safety=SafetyRecord(mode="off", action="none"),
        **changes,
    )


BEGAN = ImageRecord(sha256="ab" * 32)


@pytest.mark.parametrize(
    ("record", "actions", "source_type"),
    [
        (manifest(), ["c2pa.created"], "trainedAlgorithmicMedia"),
        (manifest(image=BEGAN, strength=0.5), ["c2pa.opened", "c2pa.edited"], "compositeWithTrainedAlgorithmicMedia"),
        (upscaled(), ["c2pa.opened", "c2pa.edited"], "algorithmicallyEnhanced"),
        (
            upscaled().model_copy(update={"upscaler": "esrgan", "hash": "cd" * 32}),
            ["c2pa.opened", "c2pa.edited"],
            "compositeWithTrainedAlgorithmicMedia",
        ),
    ],
    ids=["text to image", "image to image", "lanczos", "model"],
)
def test_the_actions_say_what_was_done(
    record: Manifest | UpscaleManifest, actions: list[str], source_type: str, image_signer: ImageSigner
) -> None:
    began = "c2pa.opened" in actions
    archives = archives_of(used_pictures(UpscaleRequest(image=sent(picture())))) if began else []
    credentials = signed(image_signer, record, archives)
    assert [action.action for action in credentials.actions] == actions
    assert credentials.actions[-1].digital_source_type == TYPES + source_type
    assert credentials.actions[-1].software is not None
    assert credentials.actions[-1].software.startswith("Darkroom ")
    assert credentials.state == "trusted"


def test_models_and_job_are_named_and_the_prompt_is_not(image_signer: ImageSigner) -> None:
    lora = LoraRecord(name="night", hash="ef" * 32, weight=0.8)
    credentials = signed(image_signer, manifest(loras=(lora,), prompt="a secret wish"), [])
    assert credentials.job_id == JOB
    assert credentials.generation == {
        "model": {"name": "demo-sdxl", "sha256": "ab" * 32},
        "refiner": {"name": "demo-sdxl-refiner", "sha256": "cd" * 32},
        "loras": [{"name": "night", "sha256": "ef" * 32}],
    }
    box = BoxRequest(x=0.0, y=0.0, width=1.0, height=1.0)
    own = RegionRecord(prompt="a", box=box, loras=(lora, LoraRecord(name="ink", hash="01" * 32, weight=1.0)))
    of_region = signed(image_signer, manifest(loras=(lora,), regions=(own,)), []).generation
    assert of_region is not None
    assert of_region["loras"] == [{"name": "night", "sha256": "ef" * 32}, {"name": "ink", "sha256": "01" * 32}]
    told = signed(image_signer, manifest(prompt="a public wish"), [], prompt=True)
    assert told.generation is not None
    assert told.generation["prompt"] == "a public wish"


def test_models_of_a_second_pass_and_of_details_are_named(image_signer: ImageSigner) -> None:
    hires = HiresRecord(
        width=128,
        height=96,
        upscaler="esrgan",
        upscaler_hash="12" * 32,
        strength=0.5,
        steps=20,
        sampler="ddim",
        model="demo-sdxl-stripes",
        model_hash="34" * 32,
    )
    detail = DetailRecord(
        detector="faces",
        detector_hash="56" * 32,
        parts=(),
        steps=20,
        guidance_scale=7.0,
        sampler="ddim",
        width=64,
        height=64,
    )
    said = signed(image_signer, manifest(hires=hires, details=(detail,), refiner=None), []).generation
    assert said == {
        "model": {"name": "demo-sdxl", "sha256": "ab" * 32},
        "upscaler": {"name": "esrgan", "sha256": "12" * 32},
        "second_pass_model": {"name": "demo-sdxl-stripes", "sha256": "34" * 32},
        "detectors": [{"name": "faces", "sha256": "56" * 32}],
    }
    lanczos = hires.model_copy(update={"upscaler": "lanczos", "upscaler_hash": None, "model": None, "model_hash": None})
    assert signed(image_signer, manifest(hires=lanczos, refiner=None), []).generation == {"model": said["model"]}


def test_pictures_of_the_request_are_ingredients(image_signer: ImageSigner) -> None:
    """One that was signed brings its credentials; another one its hash."""
    mine = encode_image(picture(), "png", manifest())
    signed_picture = image_signer.sign(mine, "image/png", definition(manifest(), 0))
    request = GenerationRequest(
        prompt="a red circle",
        image=encoded(signed_picture),
        controlnets=[{"model": "edges", "image": sent(picture(32, 32))}, {"model": "left out", "scale": 0.0}],
    )
    credentials = signed(image_signer, manifest(image=BEGAN, strength=0.5), archives_of(used_pictures(request)))
    began, steered = credentials.ingredients
    assert (began.relationship, began.state) == ("parentOf", "valid")
    assert began.signature is not None
    assert began.signature.name == "images of tests"
    assert (steered.relationship, steered.state, steered.signature) == ("inputTo", "unsigned", None)
    assert len(steered.sha256 or "") == len(began.sha256 or "") == 64
    assert [action.action for action in credentials.actions] == ["c2pa.opened", "c2pa.edited"]


def test_an_ingredient_that_was_changed_is_called_so(image_signer: ImageSigner) -> None:
    mine = encode_image(picture(), "png", manifest())
    changed = bytearray(image_signer.sign(mine, "image/png", definition(manifest(), 0)))
    changed[-30] ^= 1
    archives = archives_of(used_pictures(UpscaleRequest(image=encoded(bytes(changed)))))
    credentials = signed(image_signer, upscaled(), archives)
    assert credentials.state == "trusted", "of the new image"
    assert [one.state for one in credentials.ingredients] == ["invalid"]


def test_steered_images_were_created(image_signer: ImageSigner) -> None:
    request = GenerationRequest(prompt="a red circle", controlnets=[{"model": "edges", "image": sent(picture(32, 32))}])
    credentials = signed(image_signer, manifest(), archives_of(used_pictures(request)))
    assert [action.action for action in credentials.actions] == ["c2pa.created"]
    assert [one.relationship for one in credentials.ingredients] == ["inputTo"]


def definition(record: Manifest | UpscaleManifest, ingredients: int, prompt: bool = False) -> dict[str, Any]:
    return definition_of(record, job_id=JOB, content_type="image/png", ingredients=ingredients, prompt=prompt)


def signed(
    image_signer: ImageSigner, record: Manifest | UpscaleManifest, archives: list[bytes], prompt: bool = False
) -> Credentials:
    """The credentials of an image that is signed so."""
    file = encode_image(picture(), "png", record)
    data = image_signer.sign(file, "image/png", definition(record, len(archives), prompt), archives)
    credentials = read_credentials(data, "image/png", image_signer.anchors)
    assert credentials is not None
    return credentials
