"""A contender of the tests' own, which draws one picture for everybody: `toy_server.py PORT [broken]`."""

import sys
import time

from PIL import Image

from benchmarks.peers.servers.one_by_one import serve
from benchmarks.peers.servers.picture import Request, png

STEP_S = 0.01


def draw(request: Request) -> bytes:
    """Take a while for each step."""
    if "broken" in sys.argv:
        raise RuntimeError("no more paint")
    time.sleep(request["steps"] * STEP_S)
    return png(Image.new("RGB", (request["width"], request["height"]), "red"))


if __name__ == "__main__":
    serve(draw, int(sys.argv[1]))
