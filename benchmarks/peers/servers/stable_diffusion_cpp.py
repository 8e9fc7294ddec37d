"""stable-diffusion.cpp behind the thinnest server.

    python -m benchmarks.peers.servers.stable_diffusion_cpp FOLDER PORT

Its Python package has no server of its own. What isn't said here is its default: weights stay in the type of the file.
"""

import os
import sys

from stable_diffusion_cpp import StableDiffusion

from benchmarks.peers.servers.one_by_one import serve
from benchmarks.peers.servers.picture import Request, png

_SAMPLERS = {"euler": "euler", "dpmpp_2m": "dpm++2m", "ddim": "ddim_trailing"}


def main() -> None:
    """Serve the model. Its noise is drawn as torch draws it on a CPU, so that a seed is the same picture's."""
    model = StableDiffusion(
        model_path=sys.argv[1],
        n_threads=len(os.sched_getaffinity(0)),
        rng_type="cpu",
        sampler_rng_type="cpu",
        verbose=False,
    )

    def draw(request: Request) -> bytes:
        [picture] = model.generate_image(
            prompt=request["prompt"],
            width=request["width"],
            height=request["height"],
            cfg_scale=request["guidance_scale"],
            sample_steps=request["steps"],
            sample_method=_SAMPLERS[request["sampler"]],
            seed=request["seed"],
        )
        return png(picture)

    serve(draw, int(sys.argv[2]))


if __name__ == "__main__":
    main()
