from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.peers.requests import DEMO, alike
from benchmarks.peers.servers.pipeline import Pipeline, groups


def test_a_call_draws_one_kind() -> None:
    requests = [{**DEMO.model_dump(), "steps": steps, "sampler": sampler} for steps, sampler in KINDS]
    assert groups(requests) == [[0, 2], [1], [3]]


def test_a_batch_is_its_requests_pictures_in_their_order(tiny_sd15: Path) -> None:
    like = DEMO.model_copy(update={"width": 64, "height": 64, "steps": 2})
    requests = [request.model_dump() for request in islice(alike(like, 1), 3)]
    requests[1] |= {"width": 32, "sampler": "euler"}
    pipeline = Pipeline(str(tiny_sd15))
    together = pipeline.draw(requests)
    alone = [pipeline.draw([request])[0] for request in requests]
    assert [picture.size for picture in together] == [(64, 64), (32, 64), (64, 64)]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


KINDS = ((10, "ddim"), (20, "ddim"), (10, "ddim"), (10, "euler"))
