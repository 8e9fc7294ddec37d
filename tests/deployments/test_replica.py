"""Imports without the garbage collector: what it leaves behind, however they end."""

import gc

import pytest

from deployments.replica import without_garbage_collection


@pytest.fixture(autouse=True)
def _thawed() -> object:
    yield
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_what_came_is_never_walked_through_again() -> None:
    with without_garbage_collection():
        assert not gc.isenabled()
        lasting = {"objects": []}
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert all(tracked is not lasting for tracked in gc.get_objects())


def test_collecting_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert gc.isenabled()
