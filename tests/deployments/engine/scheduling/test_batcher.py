"""Which lanes share a step: budget, keys, priority, fairness."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.batch import Batch, BatchKey
from deployments.engine.scheduling.batcher import Batcher
from deployments.engine.types import Priority


def key(name: str = "m", size: int = 32, *, pinned: bool = False) -> BatchKey:
    return BatchKey(checkpoint=name, height=size, width=size, tokens=77, pinned=pinned)


@dataclass(eq=False)
class FakeLane:
    """The properties that a batcher reads."""

    arrival: int
    key: BatchKey = field(default_factory=key)
    rows: int = 2
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    since: float = 0.0
    evaluations: int = 20


def steps_taken(batcher: Batcher[FakeLane], lanes: list[FakeLane], turns: int) -> Counter[int]:
    """How many steps each lane (by arrival) got in `turns` equally long turns."""
    taken: Counter[int] = Counter()
    for _ in range(turns):
        batch = batcher.pick(lanes)
        batcher.charge(batch, 1.0)
        taken.update(lane.arrival for lane in batch.lanes)
    return taken


def test_a_lane_without_guidance_takes_one_row() -> None:
    batch = Batcher[FakeLane](4, 2).pick([FakeLane(1, rows=1), FakeLane(2), FakeLane(3, rows=1), FakeLane(4)])
    assert [lane.arrival for lane in batch.lanes] == [1, 2, 3]
    assert batch.rows == batch.bucket == 4


def test_a_batch_has_no_more_rows_than_the_memory_holds_and_never_less_than_a_lane() -> None:
    batcher = Batcher[FakeLane](16, 2, fitting=lambda key: 4 if key.width == 32 else 1)
    lanes = [FakeLane(n) for n in range(4)]
    batch = batcher.pick(lanes)
    assert batch.rows == 4
    large = batcher.pick([FakeLane(1, key(size=64)), FakeLane(2, key(size=64))])
    assert [lane.arrival for lane in large.lanes] == [1]


def test_higher_priority_goes_first_and_lower_ones_fill_the_rest() -> None:
    lanes = [FakeLane(1, priority=Priority.BATCH), FakeLane(2), FakeLane(3, priority=Priority.INTERACTIVE)]
    batcher: Batcher[FakeLane] = Batcher(4, 2)
    steps_taken(batcher, lanes, 6)  # they cost nothing, as is seen
    assert [lane.arrival for lane in batcher.pick(lanes).lanes] == [3, 2]


@pytest.mark.parametrize("bound_by_arithmetic", [True, False])
def test_lower_ones_join_where_that_costs_nothing(bound_by_arithmetic: bool) -> None:
    """An interactive lane among eight of a batch: alone in most steps where rows cost time, else in full ones."""
    batcher: Batcher[FakeLane] = Batcher(16, 2)
    urgent = FakeLane(99, priority=Priority.INTERACTIVE)
    lanes = [*(FakeLane(n, priority=Priority.BATCH) for n in range(8)), urgent]
    sizes: Counter[int] = Counter()
    seconds = 0.0
    for turn in range(500):
        batch = batcher.pick(lanes)
        cost = step_seconds(batch, bound_by_arithmetic=bound_by_arithmetic)
        batcher.charge(batch, cost)
        if turn >= 250 and sizes.total() < 100:  # all costs are known by then
            seconds += cost
            if urgent in batch.lanes:
                sizes[len(batch.lanes)] += 1
    assert sizes.most_common(1)[0][0] == (1 if bound_by_arithmetic else 8)
    assert seconds <= 1.2 * 100 * (0.2 if bound_by_arithmetic else 1.0)  # of a device that has nothing else to do


def test_only_one_key_shares_a_step() -> None:
    lanes = [FakeLane(1), FakeLane(2, key=key(size=64)), FakeLane(3), FakeLane(4, key=key("other"))]
    batch = Batcher[FakeLane](16, 2).pick(lanes)
    assert {lane.key for lane in batch.lanes} == {key()}


def test_no_shape_starves_another() -> None:
    many = [FakeLane(n) for n in range(8)]
    odd = FakeLane(99, key=key(size=40))
    taken = steps_taken(Batcher(16, 2), [*many, odd], 20)
    assert taken[99] == 10


def test_tenants_share_the_device_whatever_their_number_of_lanes() -> None:
    greedy = [FakeLane(n, tenant="greedy") for n in range(20)]
    modest = [FakeLane(100, tenant="modest"), FakeLane(101, tenant="modest")]
    taken = steps_taken(Batcher(4, 2), [*greedy, *modest], 40)
    of_modest = taken[100] + taken[101]
    assert 36 <= of_modest <= 44  # of 80 lane-steps


def test_idling_earns_no_credit() -> None:
    batcher: Batcher[FakeLane] = Batcher(2, 2)
    early = FakeLane(1, tenant="early")
    steps_taken(batcher, [early], 100)
    late = FakeLane(2, tenant="late")
    taken = steps_taken(batcher, [early, late], 10)
    assert taken[1] == taken[2] == 5


def test_pinned_lanes_keep_their_bucket() -> None:
    lanes = [FakeLane(n, key=key(pinned=True)) for n in range(6)]
    batch = Batcher[FakeLane](16, 8).pick(lanes)
    assert (len(batch.lanes), batch.bucket) == (4, 8)
    alone = Batcher[FakeLane](16, 8).pick(lanes[:1])
    assert alone.bucket == 8


def test_out_of_memory_halves_the_batch_and_good_steps_grow_it_again() -> None:
    batcher: Batcher[FakeLane] = Batcher(16, 2)
    lanes = [FakeLane(n) for n in range(8)]
    batcher.shrink(key(), 16)
    assert batcher.limit(key()) == 8
    for _ in range(4):
        batcher.shrink(key(), batcher.limit(key()))
    assert batcher.limit(key()) == 2
    steps_taken(batcher, lanes, 3 * 256)
    assert batcher.limit(key()) == 16
    assert batcher.limit(key("other")) == 16


def step_seconds(batch: Batch[FakeLane], *, bound_by_arithmetic: bool) -> float:
    return 0.1 * batch.bucket if bound_by_arithmetic else 1.0


@pytest.mark.parametrize("bound_by_arithmetic", [True, False])
def test_the_size_of_a_batch_is_measured(bound_by_arithmetic: bool) -> None:
    """Five lanes of two rows: padded to 16 where that costs nothing, else as small as it can be."""
    batcher: Batcher[FakeLane] = Batcher(16, 2)
    lanes = [FakeLane(n) for n in range(5)]
    buckets: Counter[int] = Counter()
    for _ in range(200):
        batch = batcher.pick(lanes)
        batcher.charge(batch, step_seconds(batch, bound_by_arithmetic=bound_by_arithmetic))
        buckets[batch.bucket] += 1
    assert buckets[2 if bound_by_arithmetic else 16] >= 180


def finished(batcher: Batcher[FakeLane], lanes: list[FakeLane], arrives: FakeLane | None = None) -> list[int]:
    """The order (by arrival) in which lanes finish; `arrives` joins once all the others have taken a step."""
    left = {lane.arrival: lane.evaluations for lane in lanes}
    order: list[int] = []
    active = list(lanes)
    while active:
        batch = batcher.pick(active)
        batcher.charge(batch, step_seconds(batch, bound_by_arithmetic=True))
        for lane in batch.lanes:
            left[lane.arrival] -= 1
            if left[lane.arrival] == 0:
                order.append(lane.arrival)
                active.remove(lane)
        if arrives is not None:
            active.append(arrives)
            left[arrives.arrival] = arrives.evaluations
            arrives = None
    return order


def test_a_short_lane_overtakes_long_ones() -> None:
    long = [FakeLane(n, evaluations=50) for n in range(8)]
    short = FakeLane(99, evaluations=10, since=1.0)
    assert finished(Batcher(16, 2), long, short)[0] == 99


def test_lanes_of_equal_work_finish_in_the_order_of_their_arrival() -> None:
    lanes = [FakeLane(n, since=float(n)) for n in range(12)]
    assert finished(Batcher(16, 2), lanes) == list(range(12))


def test_a_long_lane_is_not_overtaken_for_ever() -> None:
    """A stream of short lanes that could fill the device: what is due first goes first."""
    batcher: Batcher[FakeLane] = Batcher(2, 2)
    long = FakeLane(0, evaluations=50)
    left, now, steps = 50, 0.0, 0
    short = FakeLane(1, evaluations=10)
    left_of_short = 10
    while left:
        batch = batcher.pick([long, short])
        batcher.charge(batch, 0.1)
        now += 0.1
        steps += 1
        if batch.lanes[0] is long:
            left -= 1
        else:
            left_of_short -= 1
        if not left_of_short:
            short, left_of_short = FakeLane(steps, evaluations=10, since=now), 10
        assert steps < 300
    assert steps > 100


def test_the_most_urgent_lanes_are_cut_for_those_below_only_once_in_a_while() -> None:
    batcher: Batcher[FakeLane] = Batcher(16, 2)
    urgent = FakeLane(9, priority=Priority.INTERACTIVE)
    lanes = [*(FakeLane(n) for n in range(4)), urgent]
    without = 0
    for turn in range(2170):
        batch = batcher.pick(lanes)
        without += turn >= 2000 and urgent not in batch.lanes  # all costs are known by then
        batcher.charge(batch, step_seconds(batch, bound_by_arithmetic=True))
    assert 5 <= without <= 10


@pytest.mark.parametrize("size", [32, 64], ids=["the same shape", "another shape"])
def test_a_stream_of_urgent_lanes_starves_no_class(size: int) -> None:
    """New interactive lanes that could fill the device for ever, normal ones behind them, batch ones behind these."""
    batcher: Batcher[FakeLane] = Batcher(4, 2)
    patient = [FakeLane(n, key=key(size=size), priority=Priority.BATCH) for n in range(2)]
    normal = [FakeLane(10 + n, priority=Priority.NORMAL) for n in range(2)]
    left = {lane.arrival: 20 for lane in (*patient, *normal)}
    urgent_steps = turns = 0
    while any(left.values()):
        turns += 1
        urgent = [FakeLane(100 * turns + n, priority=Priority.INTERACTIVE) for n in range(4)]
        active = [lane for lane in (*patient, *normal) if left[lane.arrival]]
        batch = batcher.pick([*urgent, *active])
        batcher.charge(batch, 1.0)
        for lane in batch.lanes:
            if lane.arrival in left:
                left[lane.arrival] -= 1
        urgent_steps += any(lane.priority is Priority.INTERACTIVE for lane in batch.lanes)
        assert turns < 80 * 20, left
    assert urgent_steps >= 0.9 * turns


def test_images_are_decoded_by_priority() -> None:
    """Those of a batch end together; an interactive lane that steps gives them a small part of the time."""
    batcher: Batcher[FakeLane] = Batcher(4, 2)
    ended = [FakeLane(n, priority=Priority.BATCH) for n in range(3)]
    urgent = FakeLane(9, priority=Priority.INTERACTIVE)
    assert batcher.to_decode([], [urgent]) is None
    assert batcher.to_decode(ended, []) is ended[0]
    assert batcher.to_decode(ended, [FakeLane(8, priority=Priority.BATCH)]) is ended[0]  # theirs goes before a step
    assert batcher.to_decode([*ended, urgent], [FakeLane(8)]) is urgent
    batcher.charge_decode(2.0)
    decoded_after = []
    for step in range(100):
        if batcher.to_decode(ended, [urgent]) is not None:
            batcher.charge_decode(2.0)
            decoded_after.append(step)
        batcher.charge(batcher.pick([urgent]), 1.0)
    assert decoded_after == [32, 64, 96]


def test_an_adversary_with_many_tenants_lanes_and_shapes_cannot_park_a_modest_lane_for_long() -> None:
    """Every turn brings a new tenant with a lane of a new shape: neither has had anything of the device yet."""
    batcher: Batcher[FakeLane] = Batcher(4, 2)
    modest = FakeLane(0, tenant="modest", evaluations=50)
    hostile: list[FakeLane] = []
    taken = longest = parked = 0
    for turn in range(1, 150):
        hostile = [*hostile[-19:], FakeLane(turn, key=key(size=8 * turn), tenant=f"t{turn}", evaluations=1)]
        batch = batcher.pick([modest, *hostile])
        batcher.charge(batch, 1.0)
        hostile = [lane for lane in hostile if lane not in batch.lanes]
        parked = 0 if modest in batch.lanes else parked + 1
        taken += modest in batch.lanes
        longest = max(longest, parked)
    assert longest <= 2 * 20
    assert taken >= 5


def test_pinned_lanes_are_padded_whatever_it_costs() -> None:
    batcher: Batcher[FakeLane] = Batcher(16, 8)
    lanes = [FakeLane(n, key=key(pinned=True)) for n in range(3)]
    for _ in range(20):
        batch = batcher.pick(lanes)
        assert (len(batch.lanes), batch.bucket) == (3, 8)
        batcher.charge(batch, step_seconds(batch, bound_by_arithmetic=True))


lanes_strategy = st.lists(
    st.builds(
        FakeLane,
        arrival=st.integers(0, 1000),
        key=st.sampled_from([key(), key("b"), key(size=64), key(pinned=True)]),
        rows=st.sampled_from([1, 2]),
        priority=st.sampled_from(list(Priority)),
        tenant=st.sampled_from(["a", "b", "c"]),
        since=st.floats(0, 10),
        evaluations=st.integers(1, 50),
    ),
    min_size=1,
    max_size=30,
)


@given(lanes=lanes_strategy, max_rows=st.sampled_from([2, 4, 16]), turns=st.integers(1, 12))
def test_every_batch_is_legal(lanes: list[FakeLane], max_rows: int, turns: int) -> None:
    batcher: Batcher[FakeLane] = Batcher(max_rows, 2)
    for turn in range(turns):
        batch = batcher.pick(lanes)
        assert len({lane.key for lane in batch.lanes}) == 1
        assert len({id(lane) for lane in batch.lanes}) == len(batch.lanes)
        assert 0 < batch.rows <= batch.bucket <= max_rows
        assert turn or max(lane.priority for lane in batch.lanes) == max(lane.priority for lane in lanes)
        batcher.charge(batch, 0.05 * batch.bucket)
