"""Who starts next: arrival within a priority, and neither starvation nor swapping to and fro among checkpoints."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.admission import Admission
from deployments.engine.batcher import BatchKey
from deployments.engine.lane import Lane, LaneConditioning, Ticket
from deployments.engine.request import Conditioning, Priority, PromptEmbedding
from deployments.engine.samplers import SamplerTable
from tests.deployments.engine.listening import ask

TEXT = Conditioning(PromptEmbedding(np.zeros((77, 16), np.float32)), None)
PATIENCE_S = 2.0


def ticket(arrival: int, **changes: Any) -> Ticket:
    request = dataclasses.replace(ask(f"{arrival}"), **changes)
    key = BatchKey(request.checkpoint, 8, 8, 77, pinned=False)
    return Ticket(request, TEXT, key, arrival, submitted=float(arrival), sink=lambda item: None)


def lane(of: Ticket) -> Lane:
    table = SamplerTable((), 1.0, 1.0, 0.0, 0, 0)
    return Lane(of, table, LaneConditioning(torch.zeros(1, 77, 16)), torch.zeros(4, 8, 8), torch.Generator())


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
