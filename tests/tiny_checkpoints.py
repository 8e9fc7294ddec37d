"""Writes tiny random checkpoints with the true structure of SD1.5, SD2, SDXL base, SDXL refiner and classifiers.

They are what tests compare Darkroom with diffusers on.

Every writer is seeded, saves through the real pipeline classes and returns the folder. The weights mean
nothing, but a UNet's output has about the latents' scale and depends on the text: a wrong step shows.

A block has one layer, published ones have two (`PUBLISHED_LAYERS`, for tests of names that count them): at this size
a forward costs its number of operations, whatever their shapes, and is twice as fast.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

TEXT_CHANNELS = 16
TEXT_2_CHANNELS = 24
POOLED_CHANNELS = 24
TIME_ID_CHANNELS = 8
PUBLISHED_LAYERS = 2


def write_tiny_sd15(folder: Path, seed: int = 0, layers: int = 1) -> Path:
    """SD1.5: four levels, one text encoder, the PNDM schedule."""
    return _save(_tiny_sd15(StableDiffusionPipeline, folder, seed, in_channels=4, layers=layers), folder)


def write_tiny_sd2(folder: Path, seed: int = 8, prediction_type: str = "v_prediction", layers: int = 1) -> Path:
    """SD2: SD1.5's levels with linear projections and attention heads of one size, OpenCLIP's text encoder, DDIM."""
    pipeline = _tiny_sd15(
        StableDiffusionPipeline,
        folder,
        seed,
        4,
        layers,
        attention_head_dim=(1, 2, 2, 2),
        use_linear_projection=True,
        cross_attention_dim=TEXT_2_CHANNELS,
    )
    config = _text_config(TEXT_2_CHANNELS)
    config.hidden_act = "gelu"
    pipeline.register_modules(
        text_encoder=CLIPTextModel(config),
        tokenizer=write_tiny_tokenizer(folder / "tokenizer", pad="!"),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            num_train_timesteps=1000,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
    )
    return _save(pipeline, folder)


def write_shallow_sd15(folder: Path, seed: int = 7, channels: int = 8) -> Path:
    """SD1.5 with a single level: compiled in a fraction of the time."""
    levels = {"block_out_channels": (channels,)}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return _save(_tiny_sd15(StableDiffusionPipeline, folder, seed, 4, **levels, **blocks), folder)


def write_tiny_sd15_inpainting(folder: Path, seed: int = 5) -> Path:
    """SD1.5 whose UNet takes a mask and what is kept of an image as five further channels."""
    return _save(_tiny_sd15(StableDiffusionInpaintPipeline, folder, seed, in_channels=9), folder)


def write_tiny_lcm(folder: Path, seed: int = 6) -> Path:
    """SD1.5 distilled to few steps, its UNet told the guidance."""
    pipeline = _tiny_sd15(LatentConsistencyModelPipeline, folder, seed, 4, time_cond_proj_dim=16)
    pipeline.register_modules(scheduler=LCMScheduler.from_config(pipeline.scheduler.config))
    return _save(pipeline, folder)


def _tiny_sd15(
    pipeline_class: Any, folder: Path, seed: int, in_channels: int, layers: int = 1, **unet_config: Any
) -> DiffusionPipeline:
    torch.manual_seed(seed)
    levels = {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": layers,
        "down_block_types": (*(["CrossAttnDownBlock2D"] * 3), "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *(["CrossAttnUpBlock2D"] * 3)),
    }
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        norm_num_groups=4,
        **({"attention_head_dim": 2, "cross_attention_dim": TEXT_CHANNELS} | levels | unet_config),
    )
    pipeline: DiffusionPipeline = pipeline_class(
        vae=_vae(0.18215, layers),
        text_encoder=CLIPTextModel(_text_config(TEXT_CHANNELS)),
        tokenizer=write_tiny_tokenizer(folder / "tokenizer"),
        unet=_of_sane_scale(unet),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            num_train_timesteps=1000,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline


def write_tiny_sdxl(folder: Path, seed: int = 1, layers: int = 1) -> Path:
    """SDXL base: three levels, two text encoders, text_time conditions, the Euler schedule."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=TEXT_CHANNELS + TEXT_2_CHANNELS,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_CHANNELS,
        projection_class_embeddings_input_dim=POOLED_CHANNELS + 6 * TIME_ID_CHANNELS,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(0.13025, layers),
        text_encoder=CLIPTextModel(_text_config(TEXT_CHANNELS)),
        text_encoder_2=_second_text_encoder(),
        tokenizer=write_tiny_tokenizer(folder / "tokenizer"),
        tokenizer_2=write_tiny_tokenizer(folder / "tokenizer_2", pad="!"),
        unet=_of_sane_scale(unet),
        scheduler=_euler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return _save(pipeline, folder)


def write_tiny_sdxl_refiner(folder: Path, seed: int = 2, layers: int = 1) -> Path:
    """SDXL refiner: four levels, only the second text encoder (the base's), aesthetic scores."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 2, 2),
        transformer_layers_per_block=layers,
        use_linear_projection=True,
        cross_attention_dim=TEXT_2_CHANNELS,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_CHANNELS,
        projection_class_embeddings_input_dim=POOLED_CHANNELS + 5 * TIME_ID_CHANNELS,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=_vae(0.13025, layers),
        text_encoder=None,
        text_encoder_2=_second_text_encoder(),
        tokenizer=None,
        tokenizer_2=write_tiny_tokenizer(folder / "tokenizer_2", pad="!"),
        unet=_of_sane_scale(unet),
        scheduler=_euler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    return _save(pipeline, folder)


def write_tiny_vit(folder: Path, seed: int = 3) -> Path:
    """An image classifier (ViT) with the labels "normal" and "nsfw"."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that scores differ from image to image
    model.save_pretrained(folder)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 32, "width": 32},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    return folder


def write_tiny_safety_checker(folder: Path, seed: int = 4) -> Path:
    """diffusers' safety checker, with its feature extractor's preprocessor_config.json beside the weights."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=16,
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for parameter in checker.vision_model.parameters():
            parameter.mul_(4.0)
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        checker.concept_embeds_weights.fill_(0.5)
        checker.special_care_embeds_weights.fill_(0.9)
    checker.save_pretrained(folder)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_resize": True,
            "do_center_crop": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "size": 32,
            "crop_size": 32,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    return folder


def write_tiny_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer with bytes for a vocabulary: 518 ids, the end of text highest. Writes its files."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _clip_bytes()
    # a few merges, so that words are of more than one kind of token
    merges = [("r", "e"), ("c", "a"), ("ca", "t</w>"), ("re", "d</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special},
    )
    return CLIPTokenizer.from_pretrained(folder)


def _clip_bytes() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index, _ in enumerate(unprintable)]


def _text_config(hidden_size: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=518,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=2,
        projection_dim=POOLED_CHANNELS,
        # as in the published checkpoints, wrong as it is: transformers then takes the highest id for the end
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        initializer_factor=4.0,
    )


def _second_text_encoder() -> CLIPTextModelWithProjection:
    """The same weights whoever asks: base and refiner share this encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        config = _text_config(TEXT_2_CHANNELS)
        config.hidden_act = "gelu"
        return CLIPTextModelWithProjection(config)


def _vae(scaling_factor: float, layers: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type="epsilon",
        interpolation_type="linear",
        timestep_spacing="leading",
        use_karras_sigmas=False,
        steps_offset=1,
    )


@torch.no_grad()
def _of_sane_scale(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Set the output to a standard deviation of 1 on noise.

    Cross attention is left as it is: lifted to three times, guided runs of the SDXL UNet became chaotic (a change of
    1e-6 in the noise grew to 0.3 of the latents), and nothing can be compared on those.
    """
    sample = torch.randn(4, unet.config.in_channels, 8, 8)
    text = torch.randn(4, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type == "text_time":
        ids = (unet.config.projection_class_embeddings_input_dim - POOLED_CHANNELS) // TIME_ID_CHANNELS
        added = {"text_embeds": torch.randn(4, POOLED_CHANNELS), "time_ids": torch.full((4, ids), 64.0)}
    output = unet.eval()(sample, torch.tensor(500), text, added_cond_kwargs=added).sample
    unet.conv_out.weight.div_(output.std())
    unet.conv_out.bias.div_(output.std())
    return unet


def _save(pipeline: DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers 5 writes tokenizer.json; published checkpoints have the two files that the writer left here
    for tokenizer in folder.glob("tokenizer*"):
        (tokenizer / "tokenizer.json").unlink(missing_ok=True)
    return folder


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
