"""Embeddings are those of diffusers, or of A1111's rules where diffusers has none, whatever else is encoded then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from deployments.engine.checkpoints.loader import TextEncoder, TextEncoders, load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.families.family import FamilyName
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptText
from deployments.engine.prompts.textual_inversion import PromptVectors

CPU = torch.device("cpu")
DEMO_MODELS = Path(__file__).parents[4] / "demo_models"
TEXTS = [
    "a large red circle and a small yellow square on a blue background",
    "",
    "Ein größer Baum, 日本 🙂 it's 42!",
]
PIPELINES: dict[FamilyName, Any] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


def _load(family: FamilyName, folder: Path, loaded: dict[str, TextEncoder] | None = None) -> TextEncoders:
    return load_text_encoders(CheckpointSpec(family=family, source=str(folder)), CPU, torch.float32, loaded)


@pytest.fixture(scope="module")
def encoders(tiny_sd15: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path) -> dict[str, TextEncoders]:
    loaded: dict[str, TextEncoder] = {}
    return {
        "sd15": _load("sd15", tiny_sd15, loaded),
        "sdxl": _load("sdxl", tiny_sdxl, loaded),
        "sdxl-refiner": _load("sdxl-refiner", tiny_sdxl_refiner, loaded),
    }


@torch.inference_mode()
def _diffusers(family: FamilyName, folder: Path, text: str, clip_skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states and pooled embedding by the pipeline's own encode_prompt."""
    pipeline = PIPELINES[family].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    skip = {"clip_skip": clip_skip} if clip_skip else {}
    if family == "sd15" and not hasattr(pipeline.text_encoder, "text_model"):
        # diffusers 0.42 looks for the level that transformers 5.6 took out when it applies clip_skip
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    outputs = pipeline.encode_prompt(
        text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, **skip
    )
    return outputs[0][0], None if family == "sd15" else outputs[2][0]


def _assert_as_diffusers(encoder: PromptEncoder, family: FamilyName, folder: Path, clip_skip: int) -> None:
    embeddings = encoder.encode([PromptText(family, text, clip_skip) for text in TEXTS])
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        hidden, pooled = _diffusers(family, folder, text, clip_skip)
        assert embedding.hidden_states.dtype == np.float32
        assert embedding.hidden_states.flags.c_contiguous
        np.testing.assert_allclose(embedding.hidden_states, hidden.numpy(), rtol=0, atol=1e-6 * hidden.abs().max())
        assert (embedding.pooled is None) == (pooled is None)
        if embedding.pooled is not None and pooled is not None:
            np.testing.assert_allclose(embedding.pooled, pooled.numpy(), rtol=0, atol=1e-6 * pooled.abs().max())
        assert embedding.empty == (text == "")


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner"])
def test_as_diffusers(
    family: FamilyName, clip_skip: int, encoders: dict[str, TextEncoders], request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{family.replace('-', '_')}")
    _assert_as_diffusers(PromptEncoder(encoders, batch=3), family, folder, clip_skip)


@pytest.mark.parametrize(
    ("family", "name"), [("sd15", "demo-sd15"), ("sdxl", "demo-sdxl"), ("sdxl-refiner", "demo-sdxl-refiner")]
)
def test_demo_models_as_diffusers(family: FamilyName, name: str) -> None:
    folder = DEMO_MODELS / name
    _assert_as_diffusers(PromptEncoder({family: _load(family, folder)}, batch=4), family, folder, clip_skip=0)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner"])
def test_company_changes_no_bit(family: FamilyName, encoders: dict[str, TextEncoders]) -> None:
    together = PromptEncoder(encoders, batch=4).encode([PromptText(family, text) for text in TEXTS])
    for text, embedding in zip(TEXTS, together, strict=True):
        alone = PromptEncoder(encoders, batch=4).encode([PromptText(family, text)])[0]
        assert np.array_equal(alone.hidden_states, embedding.hidden_states)
        if alone.pooled is not None and embedding.pooled is not None:
            assert np.array_equal(alone.pooled, embedding.pooled)


def test_mixed_checkpoints_and_layers_come_back_in_order(encoders: dict[str, TextEncoders]) -> None:
    wanted = [
        PromptText(family, text, skip)
        for skip in (0, 1)
        for text in TEXTS[:2]
        for family in ("sd15", "sdxl", "sdxl-refiner")
    ]
    encoder = PromptEncoder(encoders, batch=4)
    for one, embedding in zip(wanted, encoder.encode(wanted), strict=True):
        assert np.array_equal(embedding.hidden_states, PromptEncoder(encoders, batch=4).encode([one])[0].hidden_states)


def test_refiner_takes_the_last_channels_of_the_base(encoders: dict[str, TextEncoders]) -> None:
    base, refiner = PromptEncoder(encoders, batch=2).encode(
        [PromptText("sdxl", "a cat"), PromptText("sdxl-refiner", "a cat")]
    )
    channels = refiner.hidden_states.shape[1]
    assert np.array_equal(base.hidden_states[:, -channels:], refiner.hidden_states)
    assert base.pooled is not None
    assert np.array_equal(base.pooled, refiner.pooled)


def test_encoders_of_equal_weights_are_loaded_once(tiny_sdxl: Path, tiny_sdxl_refiner: Path) -> None:
    loaded: dict[str, TextEncoder] = {}
    base = _load("sdxl", tiny_sdxl, loaded)
    refiner = _load("sdxl-refiner", tiny_sdxl_refiner, loaded)
    again = _load("sdxl", tiny_sdxl, loaded)
    assert refiner.encoders[0] is base.encoders[1]
    assert again.hash == base.hash
    assert len(loaded) == 2


def test_equal_texts_of_equal_encoders_are_encoded_once(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder({"one": encoders["sd15"], "other": encoders["sd15"]}, batch=1)
    first, *others = encoder.encode([PromptText(name, "a cat") for name in ("one", "one", "other")])
    assert all(other is first for other in others)
    assert not first.hidden_states.flags.writeable
    assert encoder.forwards == 1


def test_unknown_checkpoint(encoders: dict[str, TextEncoders]) -> None:
    with pytest.raises(UnknownCheckpoint, match="'dall-e'"):
        PromptEncoder(encoders, batch=2).encode([PromptText("dall-e", "a cat")])


@pytest.mark.parametrize(("family", "most"), [("sd15", 3), ("sdxl", 2)])
def test_clip_skip_has_to_leave_a_layer(family: FamilyName, most: int, encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=2)
    encoder.encode([PromptText(family, "a cat", most)])
    with pytest.raises(InvalidRequest, match=f"takes 0 to {most}"):
        encoder.encode([PromptText(family, "a cat", most + 1)])
    with pytest.raises(InvalidRequest):
        encoder.encode([PromptText(family, "a cat", -1)])


# by hand: what A1111's rules make of a prompt, as chunks of weighed parts
CORPUS: list[tuple[str, list[list[tuple[str, float]]]]] = [
    ("a (red:1.3) cat", [[("a", 1.0), ("red", 1.3), ("cat", 1.0)]]),
    ("((red)) [cat], (blue:0.2)", [[("red", 1.1**2), ("cat", 1 / 1.1), (",", 1.0), ("blue", 0.2)]]),
    ("a (red cat:0)", [[("a", 1.0), ("red cat", 0.0)]]),
    (r"\(red\) cat", [[("(red) cat", 1.0)]]),
    ("(re)(d cat)", [[("red cat", 1.1)]]),
    ("a cat BREAK (a dog:1.5)", [[("a cat", 1.0)], [("a dog", 1.5)]]),
    ("BREAK red", [[], [("red", 1.0)]]),
    ("red " * 80, [[("red " * 75, 1.0)], [("red " * 5, 1.0)]]),
    ("(" + "red " * 80 + ":1.2)", [[("red " * 75, 1.2)], [("red " * 5, 1.2)]]),
    # the last comma of the first chunk is near: what follows it goes to the next one
    ("red " * 60 + ", " + "cat " * 20, [[("red " * 60 + ",", 1.0)], [("cat " * 20, 1.0)]]),
    # it isn't near enough
    ("red " * 50 + ", " + "cat " * 30, [[("red " * 50 + "," + "cat " * 24, 1.0)], [("cat " * 6, 1.0)]]),
]


@torch.inference_mode()
def _by_hand(
    encoder: TextEncoder, chunks: list[list[tuple[str, float]]], layer: int, *, normed: bool, batch: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Hidden states of all chunks, and the first one's pooled embedding, with transformers alone."""
    tokenizer, model = encoder.tokenizer, encoder.model
    hidden, pooled = [], []
    for chunk in chunks:
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text, _ in chunk]
        weights = [weight for tokens, (_, weight) in zip(ids, chunk, strict=True) for _ in tokens]
        row = [tokenizer.bos_token_id, *(token for tokens in ids for token in tokens), tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (77 - len(row))
        outputs = model(torch.tensor([row] * batch), output_hidden_states=True)
        states = outputs.hidden_states[layer][0]
        states = model.final_layer_norm(states) if normed else states
        if any(weight != 1.0 for weight in weights):
            weighed = states * torch.tensor([1.0, *weights, *[1.0] * (76 - len(weights))])[:, None]
            states = weighed * (states.mean() / weighed.mean())
        hidden.append(states.numpy())
        pooled.append(getattr(outputs, "text_embeds", None))
    return np.concatenate(hidden), None if pooled[0] is None else pooled[0][0].numpy()


def _assert_as_by_hand(encoders: TextEncoders, name: str, noun: str) -> None:
    """noun: what the vocabulary has as one token."""
    corpus = [
        (
            prompt.replace("cat", noun),
            [[(text.replace("cat", noun), weight) for text, weight in chunk] for chunk in chunks],
        )
        for prompt, chunks in CORPUS
    ]
    embeddings = PromptEncoder({name: encoders}, batch=2).encode([PromptText(name, prompt) for prompt, _ in corpus])
    sd15 = encoders.family.name == "sd15"
    for (prompt, chunks), embedding in zip(corpus, embeddings, strict=True):
        parts = [_by_hand(encoder, chunks, -1 if sd15 else -2, normed=sd15, batch=2) for encoder in encoders.encoders]
        hidden = np.concatenate([states for states, _ in parts], axis=-1)
        assert embedding.hidden_states.shape == (77 * len(chunks), hidden.shape[1]), prompt
        if all(weight == 1.0 for chunk in chunks for _, weight in chunk):
            assert np.array_equal(embedding.hidden_states, hidden), prompt
        np.testing.assert_allclose(embedding.hidden_states, hidden, rtol=1e-3, atol=1e-5 * np.abs(hidden).max())
        if embedding.pooled is not None:  # of the first chunk, and without the weights
            assert parts[-1][1] is not None
            assert np.array_equal(embedding.pooled, parts[-1][1])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner"])
def test_weights_and_chunks_by_hand(family: FamilyName, request: pytest.FixtureRequest) -> None:
    encoders = _load(family, request.getfixturevalue(f"tiny_{family.replace('-', '_')}"))
    if family == "sd15":
        # the norm of an untrained encoder leaves a mean of 0: there would be none to go back to
        encoders.encoders[0].model.final_layer_norm.bias.data.uniform_(0.0, 1.0)
    _assert_as_by_hand(encoders, family, "cat")


@pytest.mark.parametrize(("family", "name"), [("sd15", "demo-sd15"), ("sdxl", "demo-sdxl")])
def test_demo_models_weights_and_chunks_by_hand(family: FamilyName, name: str) -> None:
    _assert_as_by_hand(_load(family, DEMO_MODELS / name), name, "circle")


def test_weights_and_chunks_do_not_depend_on_company(encoders: dict[str, TextEncoders]) -> None:
    texts = [PromptText("sdxl", prompt) for prompt, _ in CORPUS]
    together = PromptEncoder(encoders, batch=4).encode(texts)
    for text, embedding in zip(texts, together, strict=True):
        alone = PromptEncoder(encoders, batch=4).encode([text])[0]
        assert np.array_equal(alone.hidden_states, embedding.hidden_states)


def test_the_second_encoder_has_a_prompt_of_its_own(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=4)
    both, one, other, same, plain = encoder.encode(
        [
            PromptText("sdxl", "red cat", 0, "a BREAK b"),
            PromptText("sdxl", "red cat BREAK"),
            PromptText("sdxl", "a BREAK b"),
            PromptText("sdxl", "red cat", 0, "red cat"),
            PromptText("sdxl", "red cat"),
        ]
    )
    channels = encoders["sdxl"].encoders[0].model.config.hidden_size
    # the shorter one is followed by what the encoder makes of nothing
    nothing = encoder.encode([PromptText("sdxl", "")])[0]
    assert np.array_equal(both.hidden_states[:77, :channels], one.hidden_states[:, :channels])
    assert np.array_equal(both.hidden_states[77:, :channels], nothing.hidden_states[:, :channels])
    assert np.array_equal(both.hidden_states[:, channels:], other.hidden_states[:, channels:])
    assert both.pooled is not None
    assert other.pooled is not None
    assert np.array_equal(both.pooled, other.pooled)
    assert same is plain
    assert nothing.empty
    assert not encoder.encode([PromptText("sdxl", "", 0, "a")])[0].empty


def test_one_encoder_takes_no_second_prompt(encoders: dict[str, TextEncoders]) -> None:
    with pytest.raises(InvalidRequest, match="one text encoder") as refused:
        PromptEncoder(encoders, batch=2).encode([PromptText("sd15", "a", 0, "b")])
    assert refused.value.field == "second"


def test_chunks_are_bounded(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=4, max_chunks=3)
    encoder.encode([PromptText("sd15", "red " * 225)])
    for text, said in (
        ("red " * 226, "has 226 tokens, which take 4 chunks of 75: at most 3"),
        ("BREAK " * 4 + "a", "has 1 tokens, which take 5 chunks"),
        ("red " * 10_000, "has 10000 tokens, which take 134 chunks"),
    ):
        for ask in (encoder.encode, encoder.check):
            with pytest.raises(InvalidRequest, match=said) as refused:
                ask([PromptText("sd15", text)])
            assert refused.value.field == "text"
    with pytest.raises(InvalidRequest) as refused:
        encoder.encode([PromptText("sdxl", "a", 0, "red " * 226)])
    assert refused.value.field == "second"


def _vectors(channels: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(channels).standard_normal((tokens, channels), np.float32)


def test_a_textual_inversion_stands_for_its_vectors(encoders: dict[str, TextEncoders]) -> None:
    """An inversion made of a word's own vectors says what the word says."""
    table = encoders["sd15"].encoders[0].model.get_input_embeddings().weight.detach().numpy()
    tokenizer = encoders["sd15"].encoders[0].tokenizer
    ids = tokenizer("red cat", add_special_tokens=False).input_ids
    inversions = {"My-Style": PromptVectors("My-Style", (table[ids],))}
    encoder = PromptEncoder(encoders, batch=2, inversions=inversions)
    plain = PromptEncoder(encoders, batch=2)
    for prompt in ("a {} on it", "({}:1.3)", "red " * 73 + "{}", "{}"):
        named = encoder.encode([PromptText("sd15", prompt.format("my-style"))])[0]
        # an inversion is never cut: before the last two places it begins the next chunk
        spelt = plain.encode([PromptText("sd15", prompt.format("red cat"))])[0]
        assert np.array_equal(named.hidden_states, spelt.hidden_states), prompt
    cut = encoder.encode([PromptText("sd15", "red " * 74 + "my-style")])[0]
    whole = plain.encode([PromptText("sd15", "red " * 74 + "BREAK red cat")])[0]
    assert np.array_equal(cut.hidden_states, whole.hidden_states)


def test_a_textual_inversion_of_both_encoders(encoders: dict[str, TextEncoders]) -> None:
    first, second = (encoder.model.config.hidden_size for encoder in encoders["sdxl"].encoders)
    inversions = {"style": PromptVectors("style", (_vectors(first, 2), _vectors(second, 2)))}
    encoder = PromptEncoder(encoders, batch=2, inversions=inversions)
    base, refiner, without = encoder.encode(
        [PromptText("sdxl", "a style"), PromptText("sdxl-refiner", "a style"), PromptText("sdxl", "a")]
    )
    assert np.array_equal(base.hidden_states[:, first:], refiner.hidden_states)
    assert not np.array_equal(base.hidden_states[:, :first], without.hidden_states[:, :first])
    with pytest.raises(InvalidRequest, match="'style', which is for another kind of model") as refused:
        encoder.encode([PromptText("sd15", "a style")])
    assert refused.value.field == "text"
    wrong = {"style": PromptVectors("style", (_vectors(first + 1, 1),))}
    with pytest.raises(InvalidRequest, match="another kind"):
        PromptEncoder(encoders, batch=2, inversions=wrong).encode([PromptText("sd15", "a style")])
