"""Imports without the garbage collector: what it leaves behind, however they end."""

import gc

import pytest

from deployments.uncollected import uncollected


@pytest.fixture(autouse=True)
def _thawed() -> object:
    yield
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_what_came_is_never_walked_through_again() -> None:
    with uncollected():
        assert not gc.isenabled()
        lasting = {"made": []}
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert all(tracked is not lasting for tracked in gc.get_objects())


def test_collecting_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
