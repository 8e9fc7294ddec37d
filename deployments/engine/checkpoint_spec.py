"""Where a checkpoint comes from and what it is: the part of the catalogue that the engine reads.

Plain settings; no torch here, so that a process without a device can read them too.
"""

from typing import Literal

from pydantic import Field

from deployments.engine.settings import Section

Family = Literal["sd15", "sdxl", "sdxl-refiner"]


class CheckpointSpec(Section):
    """A checkpoint's source.

    source: a diffusers folder, a hub id ("owner/name"), a single .safetensors file, or
        "package:<package>/<folder>" for a folder inside an installed package (the demo models).
    revision, variant: as in diffusers ("fp16" picks *.fp16.safetensors).
    config: for a single file, a diffusers folder or hub id that describes its architecture; without it the
        family's published one is used.
    vae: a source of another VAE (an fp16-safe one, say) in place of the checkpoint's own.
    """

    family: Family
    source: str = Field(min_length=1)
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    vae: str | None = None
