"""A contender of the tests' own: a process that answers over HTTP."""

import sys
from pathlib import Path

from benchmarks.peers.bare import send
from benchmarks.peers.contender import Contender, PictureClient
from benchmarks.peers.requests import DEMO

_SERVER = Path(__file__).with_name("toy_server.py")


def toy(*options: str) -> Contender:
    """Thin as the thinnest. options: of its server."""
    return Contender(
        name="toy",
        what="a toy",
        checkpoint="own",
        like=DEMO,
        command=lambda place: [sys.executable, str(_SERVER), str(place.port), *options],
        client=lambda http: PictureClient(http, send),
        health="/",
    )
