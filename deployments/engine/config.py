"""Settings of one engine process: its device, types and batches; and the base class of all settings.

The text under a field is its description in docs/configuration.md.
"""

from dataclasses import dataclass, fields
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
MemoryPolicy = Literal["resident", "model_offload", "group_offload", "sequential_offload"]
Quantize = Literal["none", "int8"]

# pixels of a tile that are its own: with fewer most of the work would be done twice
_LEAST_ADVANCE = 16


class Section(BaseModel):
    """Base of every section of the settings: frozen, unknown keys refused, no NaN.

    Errors don't repeat the input, because a database's URL may contain a password.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class DeviceSettings(Section):
    """The device of a process."""

    device: DeviceName = "auto"
    """Device of the process: "auto" is CUDA where there is a GPU, the CPU elsewhere."""
    dtype: DtypeName = "auto"
    """Type of the weights and activations. "auto" is float16 on CUDA and float32 on the CPU. Latents and sampler
    arithmetic are always float32; "float32" never uses TF32."""
    memory_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Hard limit of this process on the GPU's memory, as a fraction (CUDA only). The stage's num_gpus lowers it."""
    cpu_threads: int = Field(default=0, ge=0, le=1024)
    """Torch threads of the process; 0 takes every processor that the process may run on."""

    def for_cpu(self) -> Self:
        """The settings of a GPU as a CPU can use them: 16-bit arithmetic takes it forty times as long as 32-bit."""
        return self.model_copy(update={"dtype": "float32"})


class LoraSettings(Section):
    """The LoRAs that requests may name."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/loras"])
    """Folder of LoRAs (.safetensors), or "package:<package>/<folder>". It must exist on every node with a router, a
    text encoder or a denoising stage. Requests name a file without its ending; files may be added and removed while the
    service runs."""
    resident_mib: int = Field(default=512, ge=0, le=1 << 20)
    """MiB of LoRAs that each replica keeps on its device besides its checkpoints, and as many in the host's memory. The
    least recently used is dropped first; LoRAs of unfinished images stay."""

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


class ControlnetSettings(Section):
    """The ControlNets that requests may name."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/controlnets"])
    """Folder of ControlNets (diffusers folders or single .safetensors files), or "package:<package>/<folder>". It must
    exist on every node with a router or a denoising stage. Requests name an entry without its ending; entries may be
    added and removed while the service runs."""
    resident_mib: int = Field(default=2048, ge=0, le=1 << 20)
    """MiB of ControlNets that each replica keeps on its device besides its checkpoints. The least recently used is
    dropped first; images whose ControlNets don't fit beside those in use wait."""

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


class IpAdapterSettings(Section):
    """The IP-Adapters that requests may name, which show reference pictures to an image (arXiv:2308.06721)."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/ip-adapters"])
    """Folder of IP-Adapters (.safetensors), or "package:<package>/<folder>". It must exist on every node with a router
    or a denoising stage. Requests name a file without its ending."""
    resident_mib: int = Field(default=512, ge=0, le=1 << 20)
    """MiB of IP-Adapters that each replica keeps on its device besides its checkpoints, as of ControlNets."""
    encoders: tuple[str, ...] = Field(default=(), max_length=4, examples=[["/srv/ip-adapters/models/image_encoder"]])
    """The image encoders that the IP-Adapters were trained with (CLIPVisionModelWithProjection): folders, hub ids or
    "package:<package>/<folder>", on every node with a text encoder, which runs them."""
    max_batch: int | None = Field(default=None, ge=1, le=256, examples=[8])
    """Pictures of each forward of an image encoder. Every forward is filled up to it, so that what is seen in a picture
    doesn't depend on the others. Without it: 8 on a GPU, 1 on a CPU, where more at once isn't quicker."""
    cache_entries: int = Field(default=64, ge=0, le=1_000_000)
    """Pictures whose features each text encoder keeps; the least recently used are dropped first. One takes 4 kB, or
    1.3 MB for an IP-Adapter that takes the states of all patches."""

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


class VaesSettings(Section):
    """The VAEs that requests may name, in place of their model's own."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/vaes"])
    """Folder of VAEs (diffusers folders or single .safetensors files), or "package:<package>/<folder>". It must exist
    on every node with a router or a denoising stage. Requests name an entry without its ending; entries may be added
    and removed while the service runs."""
    resident_mib: int = Field(default=512, ge=0, le=1 << 20)
    """MiB of VAEs that each replica keeps on its device besides its checkpoints, as of ControlNets."""

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


NO_LORAS = LoraSettings()
NO_CONTROLNETS = ControlnetSettings()
NO_IP_ADAPTERS = IpAdapterSettings()
NO_VAES = VaesSettings()


@dataclass(frozen=True, slots=True)
class ConditioningSettings:
    """The settings' sections of each kind of conditioning and of VAEs, by the names that they have there."""

    controlnets: ControlnetSettings = NO_CONTROLNETS
    ip_adapters: IpAdapterSettings = NO_IP_ADAPTERS
    vaes: VaesSettings = NO_VAES

    @property
    def device_bytes(self) -> int:
        """Of the stage's device, for the weights of all kinds."""
        return sum(getattr(self, field.name).device_bytes for field in fields(self))


class UpscalerSettings(Section):
    """The models that enlarge images: the ESRGAN family, Real-ESRGAN and its compact models included."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/upscalers"])
    """Folder of upscaling models (.safetensors), or "package:<package>/<folder>". It must exist on every node with a
    router or an upscaler. Without one no Upscaler is started, and images are enlarged by Lanczos alone."""
    resident_mib: int = Field(default=256, ge=0, le=1 << 20)
    """MiB of models that each replica keeps on its device. The least recently used is dropped first; the model in use
    stays."""
    tile: int = Field(default=256, ge=32, le=4096, multiple_of=8)
    """Width and height in pixels of the tiles that an image is enlarged in, a multiple of 8. A batch's memory grows
    with its square."""
    overlap: int = Field(default=16, ge=0, le=512, multiple_of=2)
    """Pixels on each side that a tile shares with its neighbours, an even number. Less is faster and may leave visible
    seams."""

    @model_validator(mode="after")
    def _parts_advance(self) -> "UpscalerSettings":
        if self.tile - 2 * self.overlap < _LEAST_ADVANCE:
            raise ValueError(
                f"overlap ({self.overlap}) leaves a tile of {self.tile} less than {_LEAST_ADVANCE} pixels of its own"
            )
        return self


class DetectorSettings(Section):
    """The detectors that details of requests may name."""

    folder: str | None = Field(default=None, min_length=1, examples=["/srv/detectors"])
    """Folder of detectors (.safetensors), or "package:<package>/<folder>". It must exist on every node with a router or
    a detector. Without one no Detector is started, and requests can't have details. Requests name a file without its
    ending; files may be added and removed while the service runs."""


class CompileSettings(Section):
    """UNet forwards compiled by torch's AOTInductor, which needs a C++ compiler (g++; for CUDA its toolkit too).

    A compilation takes minutes, in a process of its own at low priority. Steps run uncompiled until then, and where a
    compilation fails. Images that are `reproducible`, and those with LoRAs or ControlNets, are never drawn by compiled
    code, so that their bits don't depend on when something was compiled.
    """

    folder: str = Field(default="~/.cache/darkroom/graphs", min_length=1)
    """Folder of the compiled libraries, shared by restarts and by the replicas of one machine. Only its owner may have
    write access."""
    after_steps: int = Field(default=100, ge=1, le=1_000_000)
    """Number of times that a shape (rows, size, tokens) is run before it is compiled."""
    most: int = Field(default=16, ge=1, le=1024)
    """Most compiled shapes of one replica."""
    niceness: int = Field(default=19, ge=0, le=19)
    """Niceness of the compiler's process; a lower value takes time from the steps."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Processors that the compiler uses at once."""


class VaeSettings(Section):
    """Encoding images into latents, and decoding latents into images."""

    dtype: DtypeName = "auto"
    """Type of the VAE. "auto" is the UNet's, or float32 where that is float16 and the VAE's configuration says that it
    overflows (SDXL's own does). "bfloat16" never overflows and rounds to 8 bits."""
    tiling: Literal["auto", "always", "never"] = "auto"
    """Decoding in tiles: "auto" tiles images that don't fit the memory in one piece, "always" every image larger than a
    tile. Tiled images differ slightly."""
    tile: int = Field(default=512, ge=128, le=4096, multiple_of=64)
    """Width and height of a tile in pixels, a multiple of 64; a quarter of it overlaps with the next."""
    tiny: str | None = Field(default=None, min_length=1, examples=["madebyollin/taesd"])
    """Source of an AutoencoderTiny (TAESD) that decodes in place of the VAE: much faster, slightly different details. A
    diffusers folder or a hub id."""


class EngineSettings(DeviceSettings):
    """The step-batching engine of a denoising stage."""

    max_rows: int = Field(default=16, ge=2, le=256)
    """Most UNet rows in one step, a power of two. An image with guidance takes two rows."""
    reproducible_rows: int = Field(default=2, ge=2, le=256)
    """Rows of the batches that `reproducible` images are drawn in: a power of two, at most max_rows."""
    decode_batch: int = Field(default=1, ge=1, le=64)
    """Most images that the VAE decodes at once; 1 is what diffusers calls VAE slicing."""
    memory: Literal["auto", MemoryPolicy] = "auto"
    """Where weights are while the engine works. "resident": on the device. "model_offload": in the host's memory, each
    model on the device while it is used. "group_offload": each layer of the UNet on the device while it computes.
    "sequential_offload": each module. "auto" takes the first of these with which the largest allowed image fits; on the
    CPU always "resident"."""
    attention: Literal["auto", "sdpa", "xformers", "sliced"] = "auto"
    """Attention kernel: "sdpa" is torch's scaled_dot_product_attention, "xformers" and "sliced" are diffusers'
    processors. "auto" is sdpa. Padded prompts always use sdpa, because xformers has no kernel for their masks."""
    vae: VaeSettings = VaeSettings()
    """The VAEs."""
    channels_last: bool = True
    """Store the convolutions of the UNet and the VAE in channels_last memory format."""
    compile: CompileSettings | None = Field(default=None, examples=[{"after_steps": 100}])
    """Compilation of the UNet; leave it out to compile nothing."""
    quantize: Quantize = "none"
    """Linear layers of the UNet's transformers. "int8" stores their weights in 8 bits, which saves memory. A checkpoint
    whose output changes too much isn't loaded."""
    resident_checkpoints: int = Field(default=1, ge=1, le=64)
    """Checkpoints that stay loaded; the least recently used idle one is unloaded first."""
    max_lanes: int = Field(default=64, ge=1, le=4096)
    """Most unfinished images with state on the device; more wait."""
    swap_patience_s: float = Field(default=2.0, ge=0.0, le=600.0)
    """Seconds that an image which waits for its checkpoint to be loaded may be overtaken by later images of loaded
    checkpoints."""
    memory_gib: float | None = Field(default=None, gt=0.0, le=1e6, examples=[8.0])
    """GiB that weights and activations may fill (CPU only; on CUDA memory_fraction says it). Without it: what the
    machine or its control group has left when the engine starts."""
    host_memory_gib: float = Field(default=0.0, ge=0.0, le=1e6)
    """GiB of the host's memory that keep the weights of unloaded checkpoints, so that they come back without reading
    files. Used only where the stage has more than resident_checkpoints. On the CPU without memory_gib it is taken from
    what the machine has left; with memory_gib it comes on top."""
    progress_interval_s: float = Field(default=0.5, ge=0.0, le=60.0)
    """Least seconds between two progress events of an image; the last step is always reported."""

    def for_cpu(self) -> Self:
        """As of any device, and without xformers, whose kernels are CUDA's."""
        vae = self.vae.model_copy(update={"dtype": "auto"})
        attention = "auto" if self.attention == "xformers" else self.attention
        return super().for_cpu().model_copy(update={"vae": vae, "attention": attention})

    @model_validator(mode="after")
    def _buckets(self) -> "EngineSettings":
        for name in ("max_rows", "reproducible_rows"):
            rows = getattr(self, name)
            if rows & (rows - 1):
                raise ValueError(f"{name} must be a power of two, not {rows}")
        if self.reproducible_rows > self.max_rows:
            raise ValueError(f"reproducible_rows ({self.reproducible_rows}) must be at most max_rows ({self.max_rows})")
        return self
