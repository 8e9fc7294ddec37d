"""Which weights stay on the device, and which leave."""

from dataclasses import dataclass

from deployments.engine.memory.weight_pool import WeightPool


@dataclass(frozen=True)
class Weights:
    hash: str
    bytes: int


def get(pool: WeightPool[Weights], name: str, size: int, kept: str = "") -> Weights:
    return pool.get(name, size, lambda: Weights(name, size), set(kept))


def is_there(pool: WeightPool[Weights], weights: Weights) -> bool:
    """Whether it isn't loaded again."""
    loaded: list[Weights] = []

    def load() -> Weights:
        loaded.append(weights)
        return weights

    pool.get(weights.hash, weights.bytes, load, set())
    return not loaded


def test_the_least_recently_used_leaves_first_and_only_for_as_much_as_is_needed() -> None:
    pool = WeightPool[Weights](room=10)
    a, b, c = (get(pool, name, 3) for name in "abc")
    get(pool, "a", 3)
    get(pool, "d", 4)
    assert is_there(pool, a)
    assert is_there(pool, c)
    assert not is_there(pool, b)


def test_what_is_in_use_stays() -> None:
    pool = WeightPool[Weights](room=10)
    a, b = get(pool, "a", 5), get(pool, "b", 5)
    get(pool, "c", 5, kept="a")
    assert is_there(pool, a)
    assert not is_there(pool, b)


def test_room_is_counted_with_what_lanes_use_of_this_pool_alone() -> None:
    pool = WeightPool[Weights](room=10)
    a = get(pool, "a", 6)
    of_another_kind = Weights("x", 9)
    assert pool.has_room({"b": 4}, [a, of_another_kind])
    assert pool.has_room({"a": 6, "b": 4}, [a])
    assert not pool.has_room({"b": 5}, [a])
    assert pool.has_room({"b": 5}, [])
    assert pool.has_room({"b": 11}, [a]), "what never fits is refused when it is prepared, not kept waiting"
