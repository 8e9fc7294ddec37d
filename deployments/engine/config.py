"""Settings of one engine process: its device, its types, its batches; and what all settings have in common.

No torch here, so that a process without a device can read them too.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
MemoryPolicy = Literal["resident", "model_offload", "group_offload", "sequential_offload"]
Quantize = Literal["none", "int8", "fp8"]

# pixels of a tile that are its own: with fewer most of the work would be done twice
_LEAST_ADVANCE = 16


class Section(BaseModel):
    """What every section of the settings shares: frozen, unknown keys refused, no NaN.

    Errors don't repeat what was given: a database's URL has a password in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class DeviceSettings(Section):
    """The device of a process.

    device: "auto" is CUDA where there is one, else the CPU.
    dtype: of the weights and their activations; "auto" is float16 on CUDA, float32 on the CPU. Latents and sampler
        arithmetic are always float32. "float32" means all of its 24 bits: no TF32, which torch would use on CUDA.
    memory_fraction: hard cap of this process on the device's memory (CUDA only), from the stage's claim.
    cpu_threads: torch threads of the device thread; 0 takes every processor that the process may run on.
    """

    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    memory_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    cpu_threads: int = Field(default=0, ge=0, le=1024)


class LoraSettings(Section):
    """The LoRAs that requests may name.

    folder: of .safetensors files, on every node with a router, a text encoder or a denoising stage; requests name them
        without the ending. A path, or "package:<package>/<folder>". Files may come and go while the service runs. None
        for none.
    resident_mib: MiB of LoRAs that each replica keeps on its device besides its checkpoints, and as much in the
        machine's memory; the least recently used leaves first. Those that images in the making use stay until these are
        done.
    """

    folder: str | None = Field(default=None, min_length=1)
    resident_mib: int = Field(default=512, ge=0, le=1 << 20)

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


class ControlnetSettings(Section):
    """The ControlNets that requests may name.

    folder: of diffusers folders and single .safetensors files, on every node with a router or a denoising stage;
        requests name them without the ending. A path, or "package:<package>/<folder>". They may come and go while the
        service runs. None for none.
    resident_mib: MiB that each replica keeps for them on its device besides its checkpoints; the least recently used
        leaves first. Images whose ControlNets don't fit beside those that others use wait.
    """

    folder: str | None = Field(default=None, min_length=1)
    resident_mib: int = Field(default=2048, ge=0, le=1 << 20)

    @property
    def device_bytes(self) -> int:
        """Of a denoising stage's device."""
        return 0 if self.folder is None else self.resident_mib << 20


NO_LORAS = LoraSettings()
NO_CONTROLNETS = ControlnetSettings()


class UpscalerSettings(Section):
    """The models that enlarge pictures: of ESRGAN's family, which has Real-ESRGAN and its compact models in it.

    folder: of .safetensors files, on every node with a router or an upscaler; requests name them without the ending. A
        path, or "package:<package>/<folder>". Files may come and go while the service runs. None for none: then no
        Upscaler is started, and pictures are enlarged by Lanczos alone.
    resident_mib: MiB of models that each replica keeps on its device; the least recently used leaves first. The one at
        work always stays.
    tile: width and height in pixels of the parts that a picture goes through the model in, a multiple of 8. A batch's
        memory grows with its square.
    overlap: pixels that a part is shown beyond its own on each side, an even number. Fewer are faster, and at last
        leave seams.
    """

    folder: str | None = Field(default=None, min_length=1)
    resident_mib: int = Field(default=256, ge=0, le=1 << 20)
    tile: int = Field(default=256, ge=32, le=4096, multiple_of=8)
    overlap: int = Field(default=16, ge=0, le=512, multiple_of=2)

    @model_validator(mode="after")
    def _parts_advance(self) -> "UpscalerSettings":
        if self.tile - 2 * self.overlap < _LEAST_ADVANCE:
            raise ValueError(
                f"overlap ({self.overlap}) leaves a tile of {self.tile} less than {_LEAST_ADVANCE} pixels of its own"
            )
        return self


class CompileSettings(Section):
    """What is compiled by torch's AOTInductor, which needs a C++ compiler (g++; for CUDA its toolkit too).

    Each takes minutes, at a low priority in a process of its own; until then, and where one can't be compiled,
    steps run as without. Lanes that are `reproducible` and those with LoRAs or ControlNets always do: no bits that are
    promised depend on when something was compiled.

    folder: where they stay, for later starts and for other replicas of the machine. Only its owner may write there.
    graph: what is compiled as one: the UNet's "forward", or a whole "step", with the guidance and the sampler's update.
        "auto" is a step on CUDA, where each operation costs a launch; on a CPU it is the forward, of which each
        processor takes some rows.
    decode: whether the VAE's decodes are compiled. "auto" is on CUDA; on a CPU they are no faster.
    after_steps: a forward (rows, size, tokens) that was taken so many times is compiled.
    most: how many each replica has compiled, or loads.
    niceness: of the compiler's process; with less it takes time from the steps.
    threads: processors that it takes at once; more make the kernels of a CUDA forward sooner.
    """

    folder: str = Field(default="~/.cache/darkroom/graphs", min_length=1)
    graph: Literal["auto", "forward", "step"] = "auto"
    decode: Literal["auto", "always", "never"] = "auto"
    after_steps: int = Field(default=100, ge=1, le=1_000_000)
    most: int = Field(default=16, ge=1, le=1024)
    niceness: int = Field(default=19, ge=0, le=19)
    threads: int = Field(default=1, ge=1, le=1024)

    def whole_steps(self, *, on_cuda: bool) -> bool:
        """Whether whole steps are compiled, and not UNet forwards alone."""
        return self.graph == "step" or (self.graph == "auto" and on_cuda)

    def decodes(self, *, on_cuda: bool) -> bool:
        """Whether VAE decodes are."""
        return self.decode == "always" or (self.decode == "auto" and on_cuda)


class VaeSettings(Section):
    """How latents become pictures, and pictures latents.

    dtype: of the VAE; "auto" is the UNet's, and float32 where that is float16 and the VAE's configuration says that it
        overflows in it, as SDXL's own does. "bfloat16" never overflows, and rounds to 8 bits.
    tiling: "auto" for pictures that don't fit the memory in one piece, "always" for all that are larger than a tile.
        Pictures in tiles differ a little from those in one piece.
    tile: width and height in pixels of a tile; a quarter of it overlaps with the next.
    tiny: source of an AutoencoderTiny (TAESD), that decodes in the VAE's place: much faster, alike but for details. A
        diffusers folder or a hub id; None for none.
    """

    dtype: DtypeName = "auto"
    tiling: Literal["auto", "always", "never"] = "auto"
    tile: int = Field(default=512, ge=128, le=4096, multiple_of=64)
    tiny: str | None = Field(default=None, min_length=1)


class EngineSettings(DeviceSettings):
    """The step-batching engine of a denoising stage.

    max_rows: most UNet rows in one step (a lane with guidance takes two); a power of two.
    reproducible_rows: the bucket that `reproducible` lanes are pinned to; a power of two, at most max_rows.
    decode_batch: most images the VAE decodes at once; 1 is what diffusers calls slicing.
    memory: where weights are while the engine works. "resident": on the device. "model_offload": in the host's memory,
        the UNet on the device while there are steps to take, the VAE while it decodes. "group_offload": each of the
        UNet's layers while it computes, the next one copied meanwhile. "sequential_offload": each single module.
        "auto" is the first of these with which the largest image that may be asked for fits; on the CPU, where there
        is nothing to gain, always the first.
    attention: "sdpa" is torch's scaled_dot_product_attention, "xformers" and "sliced" diffusers' processors (texts
        that are filled up always go by torch's: xformers has no kernel for their masks). "auto" is sdpa, which is as
        fast as xformers and holds as little as slices wherever torch has a fused kernel.
    vae: of its VAEs.
    channels_last: memory format of the UNet's and the VAE's convolutions.
    compile: the UNet's forwards; None for none.
    quantize: the linears of the UNet's transformers, in 8 bits (torchao: the extra `quantize`). "int8" keeps their
        weights so, for memory; "fp8" multiplies in it too, for speed: GPUs of compute capability 8.9 or more, and dtype
        bfloat16. A checkpoint whose UNet then does something else isn't loaded.
    resident_checkpoints: how many checkpoints stay loaded; the least recently used idle one leaves first.
    max_lanes: most lanes with state on the device; more wait unprepared.
    cached_lanes: most lanes at once that were asked to cache steps, each of which keeps a UNet's deep features (SDXL at
        1024 x 1024 in 16 bits: 20 MiB); more wait.
    swap_patience_s: how long a lane that waits for its checkpoint to be loaded may be overtaken by newer lanes of
        the checkpoints that are; bounds both starvation and swapping to and fro.
    memory_gib: GiB that weights and activations may fill (CPU only; on CUDA memory_fraction says it). None takes what
        the machine, or the process's control group, has left when the engine starts.
    host_memory_gib: GiB of the host's memory for checkpoints that were read, pinned for CUDA: one that leaves the
        device comes back without its files. Only where the catalogue has more than resident_checkpoints. On the CPU
        the device's memory is the host's, so that this comes off what the machine has left.
    progress_interval_s: least seconds between two Progress events of a lane (its last step is always reported).
    """

    max_rows: int = Field(default=16, ge=2, le=256)
    reproducible_rows: int = Field(default=2, ge=2, le=256)
    decode_batch: int = Field(default=1, ge=1, le=64)
    memory: Literal["auto", MemoryPolicy] = "auto"
    attention: Literal["auto", "sdpa", "xformers", "sliced"] = "auto"
    vae: VaeSettings = VaeSettings()
    channels_last: bool = True
    compile: CompileSettings | None = None
    quantize: Quantize = "none"
    resident_checkpoints: int = Field(default=1, ge=1, le=64)
    max_lanes: int = Field(default=64, ge=1, le=4096)
    cached_lanes: int = Field(default=8, ge=1, le=4096)
    swap_patience_s: float = Field(default=2.0, ge=0.0, le=600.0)
    memory_gib: float | None = Field(default=None, gt=0.0, le=1e6)
    host_memory_gib: float = Field(default=0.0, ge=0.0, le=1e6)
    progress_interval_s: float = Field(default=0.5, ge=0.0, le=60.0)

    @model_validator(mode="after")
    def _buckets(self) -> "EngineSettings":
        for name in ("max_rows", "reproducible_rows"):
            rows = getattr(self, name)
            if rows & (rows - 1):
                raise ValueError(f"{name} must be a power of two, not {rows}")
        if self.reproducible_rows > self.max_rows:
            raise ValueError(f"reproducible_rows ({self.reproducible_rows}) must be at most max_rows ({self.max_rows})")
        return self
