"""Hugging Face's inference API with huggingface_hub's own client, over real HTTP; the stages are stand-ins."""

import base64
import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import file_of, gradient, sent
from tests.serve_app.served import beside, served

SMALL: dict[str, Any] = {"width": 128, "height": 128, "seed": 2}


@pytest.fixture(autouse=True)
def _hub_online(online_hub: None) -> None:
    """The client reaches this machine."""


async def text_to_image(address: str, prompt: str = "a red circle", **parameters: Any) -> Image.Image:
    """By the blocking client, which takes the URL as its model."""
    client = InferenceClient(model=address, token=parameters.pop("token", None), timeout=60)
    with client:
        picture: Image.Image = await beside(partial(client.text_to_image, prompt, **parameters))
    return picture


async def test_text_to_image(url: str, running: Front) -> None:
    image = await text_to_image(
        f"{url}/models/demo-sdxl",
        negative_prompt="blue",
        num_inference_steps=12,
        guidance_scale=4.0,
        scheduler="EulerAncestralDiscreteScheduler",
        **SMALL,
    )
    assert (image.format, image.size) == ("PNG", (128, 128))
    assert image.getpixel((0, 0)) == (2, 2, 2)
    request = (await running.newest()).request
    assert (request["prompt"], request["negative_prompt"]) == ("a red circle", "blue")
    assert (request["model"], request["steps"], request["guidance_scale"]) == ("demo-sdxl", 12, 4.0)
    assert (request["sampler"], request["seed"]) == ("euler_a", 2)


async def test_image_to_image(url: str, stages: Stages) -> None:
    async def drawn(**parameters: Any) -> Image.Image:
        client = InferenceClient(model=f"{url}/models/demo-sd15", timeout=60)
        with client:
            image: Image.Image = await beside(partial(client.image_to_image, file_of(gradient(192, 128)), **parameters))
        return image

    assert (await drawn(prompt="a red circle", strength=0.4, seed=2)).size == (192, 128)
    lane = (await stages.denoisers["sd15"].lanes_asked.remote())[-1]
    assert (lane.image == gradient(192, 128)).all()
    assert lane.strength == 0.4
    scaled = await drawn(prompt="x", target_size={"width": 256, "height": 192}, num_inference_steps=12, seed=2)
    assert scaled.size == (256, 192)


async def test_image_to_image_refuses_by_the_names_of_its_request(http: httpx.AsyncClient) -> None:
    image = sent(gradient(128, 128))
    for inputs, parameters, name in (
        ("x", {"prompt": "x"}, "inputs"),
        (image, {"prompt": "x", "strength": 0}, "parameters.strength"),
        (image, {"prompt": "x", "target_size": 7}, "target_size"),
        (image, {"prompt": "x", "target_size": {"width": 4096}}, "parameters.width"),
        ("x", {"strength": 0.5}, "parameters.strength"),
        ("x", {"target_size": {"width": 128}}, "parameters.target_size"),
    ):
        answer = await http.post("/predict", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 422, name
        assert name.rpartition(".")[2] in answer.json()["error"], answer.text


async def test_predict_draws_with_the_default_model(url: str, running: Front) -> None:
    image = await text_to_image(f"{url}/predict", seed=2, token="hf_whatever")  # noqa: S106
    assert image.size == (256, 256)
    assert (await running.newest()).request["model"] == "demo-sd15"


async def test_the_asynchronous_client(url: str) -> None:
    async with AsyncInferenceClient(model=f"{url}/models/demo-sd15") as client:
        assert (await client.text_to_image("a red circle", **SMALL)).size == (128, 128)


async def test_extra_body_adds_native_parameters(url: str, running: Front) -> None:
    extra = {"refiner": {"switch_at": 0.5}, "reproducible": True}
    await text_to_image(f"{url}/models/demo-sdxl", extra_body=extra, **SMALL)
    request = (await running.newest()).request
    assert (request["switch_at"], request["reproducible"]) == (0.5, True)


async def test_the_answer_is_the_file_itself(http: httpx.AsyncClient) -> None:
    body = {"inputs": "a red circle", "parameters": SMALL, "options": {"wait_for_model": True}}
    response = await http.post("/models/demo-sd15", json=body)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-seed"] == "2"
    assert response.content.startswith(b"\x89PNG")
    manifest = read_manifest(response.content)
    assert manifest is not None
    assert manifest.seed == 2


@pytest.mark.parametrize(
    ("accept", "format_"),
    [
        ("image/png", "PNG"),
        ("image/jpeg", "JPEG"),
        ("text/html, image/webp;q=0.9, */*", "WEBP"),
        ("*/*", "PNG"),
        ("", "PNG"),
    ],
)
async def test_accept_chooses_the_file_type(http: httpx.AsyncClient, accept: str, format_: str) -> None:
    response = await http.post("/predict", json={"inputs": "x", "parameters": SMALL}, headers={"accept": accept})
    assert Image.open(io.BytesIO(response.content)).format == format_


async def test_a_parameter_outranks_accept(http: httpx.AsyncClient) -> None:
    body = {"inputs": "x", "parameters": {**SMALL, "output_format": "webp"}}
    response = await http.post("/predict", json=body, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/webp"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"parameters": {}}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a", "b"]}, "inputs"),
        ({"inputs": "x", "parameters": []}, "parameters"),
        ({"inputs": "x", "parameters": {"num_inference_steps": 5000}}, "steps"),
        ({"inputs": "x", "parameters": {"width": 130}}, "width"),
        ({"inputs": "x", "parameters": {"seed": -1}}, "seed"),
        ({"inputs": "x", "parameters": {"scheduler": "NoScheduler"}}, "sampler"),
        ({"inputs": "x", "parameters": {"num_images_per_prompt": 2}}, "num_images_per_prompt"),
    ],
)
async def test_a_422_says_what_is_wrong(http: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    response = await http.post("/models/demo-sd15", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"error", "error_type"}
    assert field in response.json()["error"]


async def test_the_client_shows_a_422_to_its_user(url: str) -> None:
    with pytest.raises(HfHubHTTPError, match=r"outside 10\.\.50") as caught:
        await text_to_image(f"{url}/models/demo-sd15", num_inference_steps=5000)
    assert caught.value.response.status_code == 422


async def test_a_withheld_image_is_a_422(url: str) -> None:
    with pytest.raises(HfHubHTTPError, match="withheld as unsafe") as caught:
        await text_to_image(f"{url}/models/demo-sd15", seed=3)
    assert caught.value.response.status_code == 422


@pytest.mark.parametrize("model", ["nope", "demo-sdxl-refiner", "owner/name", "../images"])
async def test_an_unknown_model_is_not_found(url: str, model: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        await text_to_image(f"{url}/models/{model}")
    assert caught.value.response.status_code == 404


async def test_the_catalogue_stays_where_it_was(http: httpx.AsyncClient) -> None:
    assert (await http.get("/models")).json()["default"] == "demo-sd15"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_an_image_alone_is_drawn_over(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path, kind: str
) -> None:
    """What image_to_image sends where it is given nothing else: of a file its type, of bytes none."""
    raw_settings["safety"] = {"mode": "flag"}  # seeds are drawn, and odd ones would be withheld
    picture = file_of(gradient(128, 192), kind)
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(picture)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        for content in (picture, path):

            def draw(content: bytes | Path = content) -> Image.Image:
                with InferenceClient(model=f"{url}/models/demo-sd15", timeout=60) as client:
                    return client.image_to_image(content)

            assert (await beside(draw)).size == (128, 192)
            asked = (await one.newest()).request
            assert (asked["prompt"], asked["image"]["sha256"]) == ("", hashlib.sha256(picture).hexdigest())


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"], ids=["base64", "data-url"])
async def test_inputs_that_are_a_picture_are_drawn_over_without_a_prompt(
    http: httpx.AsyncClient, running: Front, stages: Stages, kind: str, prefix: str
) -> None:
    """What image_to_image sends where it is given other parameters and no prompt."""
    picture = file_of(gradient(128, 192), kind)
    inputs = prefix + base64.b64encode(picture).decode()
    response = await http.post("/predict", json={"inputs": inputs, "parameters": {"guidance_scale": 5.0, "seed": 2}})
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(response.content)).size == (128, 192)
    request = (await running.newest()).request
    assert (request["prompt"], request["guidance_scale"]) == ("", 5.0)
    assert request["image"]["sha256"] == hashlib.sha256(picture).hexdigest()


async def test_a_broken_picture_is_no_prompt(http: httpx.AsyncClient) -> None:
    inputs = base64.b64encode(file_of(gradient(128, 128))[:100]).decode()
    response = await http.post("/predict", json={"inputs": inputs})
    assert (response.status_code, response.json()["error"].startswith("inputs")) == (422, True)


async def test_a_body_of_another_kind_is_refused(http: httpx.AsyncClient) -> None:
    for kind in ("image/gif", "image/svg+xml", "application/octet-stream"):
        response = await http.post("/models/demo-sd15", content=b"GIF89a", headers={"content-type": kind})
        assert (response.status_code, response.json()["error_type"]) == (415, "unsupported_media_type")
    response = await http.post("/models/demo-sd15", content=b"\x89PNG", headers={"content-type": "image/png"})
    assert (response.status_code, response.json()["error_type"]) == (422, "invalid_request")


async def test_a_full_queue_says_when_to_come_again(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["max_queued"] = 1
    async with front(Settings.model_validate(raw_settings), stages) as one:
        await one.generate("endless", wait=None)
        response = await one.http.post("/predict", json={"inputs": "x"})
    assert (response.status_code, response.json()["error_type"]) == (503, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_client_that_goes_away_takes_its_job_along(http: httpx.AsyncClient, running: Front) -> None:
    await running.goes_with_its_client(http.post("/predict", json={"inputs": "endless"}, timeout=60))


async def test_the_service_s_own_address_is_the_default_model(url: str, running: Front) -> None:
    for address in (url, f"{url}/", f"{url}/v1", f"{url}/predict"):
        image = await text_to_image(address, **SMALL)
        assert (image.size, (await running.newest()).request["model"]) == ((128, 128), "demo-sd15")
    with pytest.raises(HfHubHTTPError, match="num_inference_steps") as caught:
        await text_to_image(url, num_inference_steps=500, **SMALL)
    assert caught.value.response.json().keys() == {"error", "error_type"}


async def test_a_pipeline_s_arguments_that_ask_for_one_picture(url: str) -> None:
    asked = {"num_images_per_prompt": 1, "output_type": "pil", "return_dict": True}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for name, value in ({**asked, "": None}).items():
            parameters = {**SMALL, name: value} if name else {**SMALL, **asked}
            answer = await http.post("/predict", json={"inputs": "x", "parameters": parameters})
            assert answer.status_code == 200, answer.text
        for name, value in (("num_images_per_prompt", 2), ("output_type", "latent"), ("callback", 1)):
            answer = await http.post("/predict", json={"inputs": "x", "parameters": {**SMALL, name: value}})
            assert answer.status_code == 422
            assert name in answer.json()["error"]


async def test_image_to_image_with_parameters_and_without_a_prompt(url: str, running: Front) -> None:
    client = InferenceClient(model=f"{url}/models/demo-sd15", timeout=60)
    with client:
        await beside(partial(client.image_to_image, file_of(gradient(192, 128)), guidance_scale=3.0, seed=2))
    request = (await running.newest()).request
    assert (request["prompt"], request["guidance_scale"], request["image"] is None) == ("", 3.0, False)
