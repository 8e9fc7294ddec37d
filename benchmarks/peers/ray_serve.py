"""diffusers behind plain Ray Serve, as in its public example of Stable Diffusion, and with @serve.batch.

Started by `serve run` with a config file, Ray's own documented way to choose the port; not in a cluster that runs
already.
"""

from collections.abc import Callable

import httpx
import yaml

from benchmarks.peers.contender import APPS, Contender, PictureClient, Place
from benchmarks.peers.requests import DEMO
from benchmarks.service_requests import ImageRequest

# no pings, no second environment for the workers, no token: all else is Ray's default
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "disabled"}


async def _send(http: httpx.AsyncClient, request: ImageRequest) -> httpx.Response:
    return await http.get("/imagine", params=request.model_dump())


def _command(application: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        path = place.folder / f"{application}.yaml"
        config = {
            "http_options": {"host": "127.0.0.1", "port": place.port},
            "applications": [{"name": "default", "import_path": f"{APPS}.ray_serve:{application}"}],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return [str(place.bin / "serve"), "run", "--address", "local", str(path)]

    return command


def _contender(name: str, what: str, application: str) -> Contender:
    return Contender(
        name=name,
        what=what,
        checkpoint="demo",
        like=DEMO,
        command=_command(application),
        client=lambda http: PictureClient(http, _send),
        environment=_ENVIRONMENT,
    )


RAY_SERVE = _contender("ray-serve", "diffusers behind Ray Serve, as its example has it", "plain")
RAY_SERVE_BATCH = _contender("ray-serve-batch", "the same with @serve.batch, batches of up to 8", "batched")
