"""A router over stand-in stages in a process of its own, which a test kills: its settings as JSON, and its owner."""

import asyncio
import sys

from serve_app.config.settings import Settings
from tests.serve_app.front import front, stand_ins


async def main() -> None:
    settings = Settings.model_validate_json(sys.argv[1])
    async with front(settings, stand_ins(), owner=sys.argv[2]) as one:
        await one.maintenance.start()
        await one.batches.start()
        await asyncio.Event().wait()


asyncio.run(main())
