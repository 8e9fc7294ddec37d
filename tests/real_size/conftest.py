"""These tests take gigabytes of disk and memory, and minutes: only `-m real_size` runs them."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "real_size" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("real_size") is not None:
            item.add_marker(pytest.mark.skip(reason="gigabytes and minutes: `pytest -m real_size` runs it"))
