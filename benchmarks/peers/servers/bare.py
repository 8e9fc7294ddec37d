"""A bare diffusers pipeline: `python -m benchmarks.peers.servers.bare CHECKPOINT PORT`."""

import sys

from benchmarks.peers.servers.one_by_one import serve
from benchmarks.peers.servers.picture import png
from benchmarks.peers.servers.pipeline import Pipeline


def main() -> None:
    """Serve the pipeline."""
    pipeline = Pipeline(sys.argv[1])
    serve(lambda request: png(pipeline.draw([request])[0]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
