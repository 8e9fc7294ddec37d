from itertools import islice

from benchmarks.peers.requests import DEMO, alike, mixed


def test_mixed_requests_differ_in_everything_and_are_the_same_for_everybody() -> None:
    some = list(islice(mixed(1), 24))
    assert some == list(islice(mixed(1), 24))
    for name in ("width", "height", "steps", "sampler", "guidance_scale", "prompt", "seed"):
        assert len({getattr(request, name) for request in some}) > 1, name


def test_alike_requests_differ_in_prompt_and_seed() -> None:
    some = list(islice(alike(DEMO, 1, steps=50), 5))
    assert len({request.prompt for request in some}) == len({request.seed for request in some}) == 5
    assert {(request.steps, request.sampler) for request in some} == {(50, DEMO.sampler)}
