"""Who starts next: arrival within a priority, and neither starvation nor swapping to and fro among checkpoints."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.batch import BatchKey
from deployments.engine.lanes.lane import Lane, LaneConditioning, Ticket
from deployments.engine.lanes.snapshot import SnapshotFingerprint
from deployments.engine.samplers.tables import SamplerTable
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.batcher import Batcher
from deployments.engine.types import Conditioning, Priority, PromptEmbedding
from tests.deployments.engine.listening import ask

TEXT = Conditioning(PromptEmbedding(np.zeros((77, 16), np.float32)), None)
PATIENCE_S = 2.0


def ticket(arrival: int, **changes: Any) -> Ticket:
    request = dataclasses.replace(ask(f"{arrival}"), **changes)
    key = BatchKey(request.checkpoint, 8, 8, 77, pinned=False)
    return Ticket(request, TEXT, key, arrival, submitted=float(arrival), sink=lambda item: None)


def lane(of: Ticket) -> Lane:
    table = SamplerTable((), (), 1.0, 1.0, 0.0, 0, 0)
    latents = torch.zeros(4, 8, 8)
    fingerprint = SnapshotFingerprint("", "", (4, 8, 8), "best-effort", "cpu", "float32", **of.request.parameters())
    return Lane(of, table, LaneConditioning(torch.zeros(1, 77, 16)), latents, torch.Generator(), fingerprint)


def next_of(
    waiting: Sequence[Ticket],
    active: Sequence[Ticket] = (),
    *,
    can_load: bool = False,
    now: float = 10.0,
    most: int = 2,
) -> int | None:
    """The arrival of the ticket that is admitted; "sd15" is loaded."""
    admission = Admission(most, PATIENCE_S)
    lanes = [lane(of) for of in active]
    admitted = admission.next_ticket(waiting, lanes, loaded=lambda name: name == "sd15", can_load=can_load, now=now)
    return None if admitted is None else admitted.arrival


def test_arrival_within_a_priority() -> None:
    assert next_of([]) is None
    assert next_of([ticket(3), ticket(1), ticket(2)]) == 1
    assert next_of([ticket(1, priority=Priority.BATCH), ticket(2), ticket(3, priority=Priority.INTERACTIVE)]) == 3


def test_whoever_lost_its_lane_keeps_its_place() -> None:
    """What was lost with its stage comes again behind those that came since: it goes before them all the same."""
    came_again = ticket(9, waited_s=8.5)
    assert next_of([ticket(1), ticket(2), came_again]) == 9
    stepping = Batcher[Lane](2, 1).pick([lane(ticket(1)), lane(ticket(2)), lane(came_again)])
    assert [one.arrival for one in stepping.lanes] == [9, 1]


def test_places_are_counted_from_a_priority_upwards() -> None:
    active = [ticket(1, priority=Priority.BATCH), ticket(2)]
    assert next_of([ticket(3, priority=Priority.BATCH)], active) is None
    assert next_of([ticket(3)], active) == 3
    assert next_of([ticket(3), ticket(4, priority=Priority.INTERACTIVE)], [*active, ticket(5)]) == 4


@pytest.mark.parametrize(("can_load", "admitted"), [(True, 8), (False, 9)])
def test_who_waits_for_a_checkpoint_is_overtaken_only_while_it_cannot_be_loaded(can_load: bool, admitted: int) -> None:
    waiting = [ticket(8, checkpoint="sdxl"), ticket(9)]
    assert next_of(waiting, can_load=can_load) == admitted


def test_patience_ends() -> None:
    """Then nothing more of what is loaded starts, so that it drains and makes room."""
    waiting = [ticket(8, checkpoint="sdxl"), ticket(9)]
    assert next_of(waiting, now=8 + PATIENCE_S) == 9
    assert next_of(waiting, now=8 + PATIENCE_S + 0.1) is None
    assert next_of([ticket(9), *waiting[:1], ticket(7)], now=20.0) == 7, "who came before goes on being served"


def test_places_go_to_the_tenant_that_has_fewest() -> None:
    """A thousand tickets of one tenant keep nobody else waiting for more than one place."""
    greedy = [ticket(n, tenant="greedy") for n in range(10)]
    assert next_of([*greedy[1:], ticket(99, tenant="modest")], greedy[:1]) == 99
    assert next_of([*greedy[2:], ticket(99, tenant="modest")], greedy[:2]) is None


def test_a_class_without_a_lane_gets_its_first_one() -> None:
    urgent = [ticket(n, priority=Priority.INTERACTIVE) for n in range(4)]
    waiting = [*urgent[2:], ticket(5, priority=Priority.BATCH), ticket(6, priority=Priority.BATCH)]
    assert next_of(waiting, urgent[:2]) == 5
    assert next_of(waiting, [*urgent[:2], ticket(4, priority=Priority.BATCH)]) is None


def test_whoever_starves_for_a_checkpoint_is_overtaken_by_no_class() -> None:
    starving = ticket(8, checkpoint="sdxl", priority=Priority.BATCH)
    waiting = [starving, ticket(9, priority=Priority.INTERACTIVE), ticket(7, priority=Priority.INTERACTIVE)]
    assert next_of(waiting[:2], now=38.0) == 9
    assert next_of(waiting[:2], now=38.5) is None, "what is loaded drains"
    assert next_of(waiting, now=38.5) == 7, "who came before goes on being served"
    assert next_of(waiting[:2], now=38.5, can_load=True) == 8
