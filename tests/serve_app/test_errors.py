"""Every exception has its HTTP status, and a code of its own."""

import pickle
from collections.abc import Iterable, Iterator

import pytest

from deployments.engine.errors import DarkroomError
from serve_app import errors
from serve_app.api.http_status import BRANCHES, STATUS, status_of

CODES = (
    "batch_refused", "blocked", "body_too_large", "body_too_slow", "cancelled", "checkpoint_changed",
    "checkpoint_error", "controlnet_refused", "detector_refused",
    "deadline_exceeded", "device_unavailable", "does_not_fit", "engine_stopped", "forbidden", "headers_too_large",
    "idempotency_mismatch", "internal_error", "invalid_request", "ip_adapter_refused", "lora_refused", "malformed_id",
    "method_not_allowed",
    "not_found", "numerical_failure", "out_of_device_memory", "prompt_refused", "queue_full", "quota_exceeded",
    "rate_limited", "signature_failed",
    "stage_unavailable", "stale_lease", "starts_too_late", "state_refused", "store_unavailable",
    "tenant_queue_full", "too_many_batches", "too_many_files", "too_many_streams", "unauthenticated", "unknown_batch",
    "unknown_entry", "unknown_file", "unknown_image", "unknown_job", "unknown_model",
    "unknown_route", "unknown_sampler", "unreadable_request", "unsupported_media_type", "upscaler_refused",
    "vae_refused",
)  # fmt: skip


def tree(cls: type[DarkroomError] = DarkroomError) -> Iterator[type[DarkroomError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def ours(classes: Iterable[type[DarkroomError]]) -> set[type[DarkroomError]]:
    return {cls for cls in classes if cls.__module__.startswith(("serve_app", "deployments"))}


def test_every_branch_of_the_tree_has_a_status_of_its_own() -> None:
    assert ours(DarkroomError.__subclasses__()) <= BRANCHES.keys()
    assert ours(tree()) == STATUS.keys()


def test_the_table_holds_nothing_that_follows_from_a_branch() -> None:
    for cls, status in BRANCHES.items():
        if cls not in (DarkroomError, *DarkroomError.__subclasses__()):
            assert status != STATUS[cls.__mro__[1]], cls


def test_codes_are_what_clients_know() -> None:
    """A class says its code itself; its branches may have it in common."""
    assert {cls.code for cls in STATUS} == set(CODES)


@pytest.mark.parametrize("cls", STATUS)
def test_errors_survive_pickling(cls: type[DarkroomError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what happened", "steps")))  # noqa: S301
    assert (type(error), str(error), error.field) == (cls, "what happened", "steps")


def test_a_class_that_the_table_does_not_know_gets_its_base_s_status() -> None:
    class Narrower(errors.QueueFull):
        pass

    assert status_of(Narrower("full")) == 503


def test_the_tree_at_the_top_of_the_module_names_every_class_of_the_front() -> None:
    assert errors.__doc__ is not None
    for cls in STATUS:
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in errors.__doc__
