"""What is kept of a job's images: newest first, within its bytes, and never a reason to fail."""

from dataclasses import replace

import numpy as np

from deployments.engine.types import DenoiseRequest, DenoiseResult, Detection, Detections, StageTimings
from serve_app.jobs.job_snapshots import JobSnapshots
from tests.serve_app.stand_in_stages import state_after

ASKED = DenoiseRequest(
    "lane", "demo-sdxl", seed=2**63 - 1, steps=20, guidance_scale=7.1, width=64, height=48, sampler="euler"
)
HANDED_OVER = DenoiseResult(
    lane_id="lane",
    seed=2**63 - 1,
    checkpoint="demo-sdxl",
    checkpoint_hash="ab" * 32,
    reproducibility="bucket:2",
    timings=StageTimings(0.1, 2.5, 0.0, 2.0),
    device="cuda",
    dtype="float16",
    latents=np.random.default_rng(0).standard_normal((4, 6, 8), np.float32),
    generator_state=np.arange(5056, dtype=np.uint8),
)


def packed(one: JobSnapshots, max_bytes: int = 10**9) -> dict[tuple[int, int], bytes]:
    return one.pack(one.unsaved(), max_bytes)


def test_an_adopter_finds_what_was_kept() -> None:
    before, after = JobSnapshots(), JobSnapshots()
    before.put(0, 0, state_after(5, ASKED))
    before.put(0, 0, HANDED_OVER)
    before.put(0, 1, state_after(7, ASKED))
    before.put(1, 0, state_after(9, ASKED))
    assert set(after.restore(packed(before))) == {(0, 0), (0, 1), (1, 0)}
    assert (after.state(0, 0), after.result(0, 1), after.state(2, 0)) == (None, None, None)
    result, state = after.result(0, 0), after.state(1, 0)
    assert result is not None
    assert result.latents is not None
    assert result.generator_state is not None
    assert result.latents.tobytes() == HANDED_OVER.latents.tobytes()
    assert result.generator_state.tobytes() == HANDED_OVER.generator_state.tobytes()
    for name in ("seed", "checkpoint", "checkpoint_hash", "reproducibility", "timings", "device", "dtype", "image"):
        assert getattr(result, name) == getattr(HANDED_OVER, name)
    assert state is not None
    assert (state.step, state.fingerprint) == (9, state_after(9, ASKED).fingerprint)
    assert state.latents.tobytes() == state_after(9, ASKED).latents.tobytes()
    assert after.unsaved() == {}


def test_a_picture_for_a_second_pass_is_kept_too() -> None:
    picture = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
    before, after = JobSnapshots(), JobSnapshots()
    before.put(0, 0, replace(HANDED_OVER, latents=None, generator_state=None, image=picture))
    after.restore(packed(before))
    result = after.result(0, 0)
    assert result is not None
    assert result.image is not None
    assert (result.image.dtype, result.image.tobytes()) == (np.uint8, picture.tobytes())
    assert result.latents is None


def test_what_a_detail_has_found_is_kept_too() -> None:
    found = Detections((Detection("face", 0.9, 1, 2, 30, 40), Detection("hand", 0.4, 5, 6, 7, 8)), "d" * 64)
    before, after = JobSnapshots(), JobSnapshots()
    before.put(0, 5, found)
    before.put(1, 5, Detections((), "d" * 64))
    after.restore(packed(before))
    assert (after.detections(0, 5), after.detections(1, 5)) == (found, Detections((), "d" * 64))
    assert (after.detections(2, 5), after.state(0, 5), after.result(0, 5)) == (None, None, None)


def test_only_what_is_new_is_written() -> None:
    one = JobSnapshots()
    one.put(0, 0, state_after(5, ASKED))
    one.put(1, 0, state_after(5, ASKED))
    parts = one.unsaved()
    one.put(1, 0, state_after(10, ASKED))  # while the others are being written
    one.saved(parts, one.pack(parts, 10**9))
    assert [(where, part.step) for where, part in one.unsaved().items()] == [((1, 0), 10)]


def test_a_job_keeps_no_more_than_its_bytes() -> None:
    one = JobSnapshots()
    one.put(0, 0, state_after(5, ASKED))
    size = len(packed(one)[0, 0])
    one.put(1, 0, state_after(5, ASKED))
    one.put(2, 0, state_after(5, ASKED))
    assert packed(one, 0) == {}
    parts = one.unsaved()
    stored = one.pack(parts, 2 * size)
    assert set(stored) == {(0, 0), (1, 0)}
    one.saved(parts, stored)
    assert one.unsaved() == {}  # what has no room isn't tried again before it is newer
    one.put(2, 0, state_after(10, ASKED))
    one.put(1, 0, state_after(10, ASKED))
    assert set(packed(one, 2 * size + 8)) == {(1, 0)}  # in its own place
    adopter = JobSnapshots()
    adopter.restore(stored)
    adopter.put(2, 0, state_after(10, ASKED))
    assert packed(adopter, 2 * size + 8) == {}


def test_what_cannot_be_read_is_drawn_again() -> None:
    before, after = JobSnapshots(), JobSnapshots()
    before.put(0, 0, state_after(5, ASKED))
    before.put(0, 1, HANDED_OVER)
    good = packed(before)
    bad = {(1, 0): good[0, 0][:-1], (1, 1): good[0, 1][8:], (2, 0): b"", (2, 1): good[0, 1].replace(b"dtype", b"dtypo")}
    assert set(after.restore(good | bad)) == {(0, 0), (0, 1)}
