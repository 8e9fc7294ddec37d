"""Signed addresses of images: for one image, for a while, and only as long as the key that signed them."""

import pytest

from serve_app.auth.key_file import ApiKey, Scope
from serve_app.auth.signed_urls import ImageLink, link_query

KEY = ApiKey("0000000a", "alice", frozenset({Scope.READ}), b"a" * 32)
NEW_DIGEST = ApiKey("0000000a", "alice", frozenset({Scope.READ}), b"b" * 32)
NAME = "0" * 32 + "-1-0.png"
NOW = 1_000_000.0
HOUR = 3_600


def link(query: str) -> ImageLink:
    found = ImageLink.parse(query)
    assert found is not None
    return found


def test_it_holds_from_one_to_two_times_as_long_as_it_must() -> None:
    query = link_query(NAME, KEY, NOW, HOUR)
    left = link(query).expires - NOW
    assert HOUR < left <= 2 * HOUR
    assert link(query).holds(NAME, KEY, NOW)
    assert link(query).holds(NAME, KEY, NOW + left - 1)
    assert not link(query).holds(NAME, KEY, NOW + left)


def test_it_stays_the_same_for_a_while_so_that_it_can_be_cached() -> None:
    queries = {link_query(NAME, KEY, NOW + second, HOUR) for second in range(0, HOUR, 60)}
    assert len(queries) <= 2


def test_it_is_for_one_image_one_key_and_one_end() -> None:
    query = link_query(NAME, KEY, NOW, HOUR)
    assert not link(query).holds("1" * 32 + "-1-0.png", KEY, NOW)
    assert not link(query).holds(NAME, NEW_DIGEST, NOW)
    later = query.replace(str(link(query).expires), str(link(query).expires + 1))
    assert not link(later).holds(NAME, KEY, NOW)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "key=0000000a",
        "key=0000000a&expires=-1&signature=00",
        "key=0000000a&expires=1e9&signature=00",
        "key=0000000a&expires=9999999999999999999999&signature=00",
        "key=0000000a&expires=2000000000&signature=00&more=1",
        "key=0000000a&key=0000000a&expires=2000000000",
    ],
)
def test_what_is_no_link(query: str) -> None:
    assert ImageLink.parse(query) is None


@pytest.mark.parametrize("signature", ["", "00", "é" * 64, "0" * 64])
def test_a_made_up_signature_doesn_t_hold(signature: str) -> None:
    found = ImageLink.parse(f"key={KEY.id}&expires=2000000000&signature={signature}")
    assert found is None or not found.holds(NAME, KEY, NOW)
