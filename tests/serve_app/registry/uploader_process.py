"""A process that uploads, replaces and removes LoRAs without end, which a test kills: its folder, and its database."""

import asyncio
import random
import sys
from pathlib import Path

from serve_app.jobs.db.store import JobStore
from tests.serve_app.registry.test_weight_files import ALICE, lora, put, weight_files

NAMES = ("night", "day", "dawn")


async def main() -> None:
    folder, url = Path(sys.argv[1]), sys.argv[2]
    store = JobStore(url)
    await store.open()
    files = weight_files(folder, store)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        name = random.choice(NAMES)
        if random.random() < 0.3 and (folder / "loras" / f"{name}.safetensors").exists():
            await files.remove("loras", name, ALICE)
        else:
            await put(files, name, lora(random.randrange(1 << 30)), replaces=True)


if __name__ == "__main__":
    asyncio.run(main())
