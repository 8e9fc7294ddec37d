"""The samplers as diffusers users know them, written down without a look at the engine's own list."""

import inspect
from typing import Any

import diffusers

# sampler -> diffusers' class, and what a user gives to its from_config beside the checkpoint's own configuration
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
# the same with a schedule of the user's choice
SIGMAS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "trailing": {"timestep_spacing": "trailing"},
}
SCHEDULED: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}_{schedule}": (class_name, changes | sigmas)
    for name, (class_name, changes) in SCHEDULERS.items()
    for schedule, sigmas in SIGMAS.items()
    if not name.endswith("_karras")
    and sigmas.keys() <= inspect.signature(getattr(diffusers, class_name).__init__).parameters.keys()
    and name not in ("lcm", "tcd")  # they take a timestep_spacing, and don't look at it
}
# what a user of an SDXL checkpoint adds: its configuration says nothing, and the classes' defaults are for pixels
FOR_LATENTS: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False},
    "ddpm": {"clip_sample": False},
    "pndm": {"skip_prk_steps": True},
}
