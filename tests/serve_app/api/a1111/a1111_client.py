"""How tests call A1111's API with webuiapi, and wait for what it draws."""

from collections.abc import Callable
from typing import Any, TypeVar

from webuiapi import WebUIApi

from tests.serve_app.front import Front, until
from tests.serve_app.served import beside

Answer = TypeVar("Answer")

SMALL = {"width": 128, "height": 128, "seed": 2}


async def call(url: str, use: Callable[[WebUIApi], Answer], **settings: Any) -> Answer:
    """What `use` makes of a webuiapi client."""

    def run() -> Answer:
        api = WebUIApi(baseurl=f"{url}/sdapi/v1", **settings)
        with api.session:
            return use(api)

    return await beside(run)


async def drawing(running: Front, jobs: int = 1) -> None:
    """Wait until so many jobs are under way, and none waits."""
    await until(lambda: running.service.runner.depth() == (0, jobs))
