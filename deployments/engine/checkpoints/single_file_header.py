"""What a single-file checkpoint says of itself, by the names of its tensors and by its metadata; no weight is read.

Trainers mark a checkpoint that predicts v by empty tensors (`v_pred`, and `ztsnr` for zero terminal SNR), and by
ModelSpec's metadata (github.com/Stability-AI/ModelSpec). Torch-free, because settings are completed by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deployments.engine.checkpoints.files import Header, is_safetensors, read_header, read_json
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName, PredictionType
from deployments.engine.families.registry import FAMILIES

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
_TEXT_KEYS = ".attn2.to_k.weight"
_V, _ZERO_SNR = "v_pred", "ztsnr"
# schedules that no sampler here has, with what says so
_EDM = {"edm_mean": "EDM's scaled latents", "edm_vpred.sigma_max": "EDM's noise levels"}
_PREDICTION, _ARCHITECTURE = "modelspec.prediction_type", "modelspec.architecture"
_PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}


@dataclass(frozen=True, slots=True)
class SingleFileHeader:
    """What a single file says.

    Attributes:
        family: whose published UNet takes as many text channels; None for none.
        in_channels: of the UNet; more than the latents' for an inpainting one.
        prediction_type: what it was trained to predict; None if it doesn't say.
        zero_snr: whether it was trained with zero terminal SNR (arXiv:2305.08891).
        said_by: what in the file says so.
        doubts: what in the file contradicts that, or can't be understood, as sentences.
    """

    path: Path
    family: FamilyName | None
    in_channels: int
    prediction_type: PredictionType | None
    zero_snr: bool
    said_by: str
    doubts: tuple[str, ...]


def read_single_file_header(path: Path) -> SingleFileHeader:
    """Read what a file says of itself.

    Raises:
        CheckpointError: it isn't safetensors, holds no UNet, or was trained for a schedule that no sampler has.
    """
    header = read_header(path)
    first = header.tensors.get(_FIRST_LAYER)
    if first is None or len(first.shape) != 4:
        raise CheckpointError(f"{path}: expected a UNet's tensors, named {_FIRST_LAYER} and so on, found none")
    for name, schedule in _EDM.items():
        if name in header.tensors:
            raise CheckpointError(f"{path}: its tensor {name} says that it was trained on {schedule}: not supported")
    channels = (entry.shape[-1] for name, entry in header.tensors.items() if name.endswith(_TEXT_KEYS) and entry.shape)
    family = _families().get(next(channels, None))
    in_channels = first.shape[1]
    prediction, zero_snr, said_by, doubts = _training(header, family, in_channels)
    return SingleFileHeader(path, family, in_channels, prediction, zero_snr, said_by, doubts)


def family_of(source: str) -> FamilyName:
    """The family of a single file that lies here.

    Raises CheckpointError as `read_single_file_header`, or if the source isn't such a file, or one of no family.
    """
    path = Path(source).expanduser()
    if not is_safetensors(path) or not path.is_file():
        found = f"there is no file {source} here" if is_safetensors(path) else f"{source} isn't a .safetensors file"
        raise CheckpointError(f"say `family` ({' or '.join(FAMILIES)}): {found}, whose tensors would say it")
    family = read_single_file_header(path).family
    if family is None:
        raise CheckpointError(f"{source}: its UNet has the shape of no published one: say `family` and `config`")
    return family


def check_family(header: SingleFileHeader, family: FamilyName) -> None:
    """Raise CheckpointError unless the family's published configuration describes the file."""
    if header.family != family:
        found = "of no published shape" if header.family is None else f"family {header.family}'s"
        raise CheckpointError(
            f"{header.path}: expected a UNet of family {family}, found one {found}: correct `family`, or name a "
            "diffusers folder that describes it in `config`"
        )


def _training(
    header: Header, family: FamilyName | None, in_channels: int
) -> tuple[PredictionType | None, bool, str, tuple[str, ...]]:
    """What the model predicts, whether with zero terminal SNR, what says so, and doubts."""
    doubts = []
    metadata = header.metadata
    prediction: PredictionType | None = None
    said_by = ""
    stated = metadata.get(_PREDICTION)
    if stated is not None:
        prediction, said_by = _PREDICTIONS.get(stated.lower()), f"its metadata {_PREDICTION}"
        if prediction is None:
            doubts.append(f"its metadata {_PREDICTION} is {stated[:64]!a}, expected epsilon or v: it has no effect")
    if prediction is None and family is not None:
        architecture = metadata.get(_ARCHITECTURE, "").partition("/")[0]
        prediction, said_by = FAMILIES[family].specifications.get(architecture), f"its metadata {_ARCHITECTURE}"
    if _V in header.tensors:
        if prediction == "epsilon":
            doubts.append(f"{said_by} says epsilon, its tensor {_V} says v_prediction: the tensor counts")
        prediction, said_by = "v_prediction", f"its tensor {_V}"
    zero_snr = _ZERO_SNR in header.tensors
    if zero_snr and prediction != "v_prediction":
        doubts.append(f"its tensor {_ZERO_SNR} says zero terminal SNR, which needs v_prediction: it has no effect")
        zero_snr = False
    if prediction is None and family is not None and in_channels != FAMILIES[family].latent_channels:
        prediction = FAMILIES[family].inpainting_predicts
        said_by = f"its {in_channels} input channels, as the published one of its kind"
    return prediction, zero_snr, said_by, tuple(doubts)


@cache
def _families() -> Mapping[object, FamilyName]:
    """The families by the text channels of their published UNets."""
    configs = {name: read_json(family.published / "unet" / "config.json") for name, family in FAMILIES.items()}
    return {config["cross_attention_dim"]: name for name, config in configs.items()}
