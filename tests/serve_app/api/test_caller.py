"""Who counts as one caller."""

import pytest
from starlette.requests import Request

from serve_app.api.caller import caller_of


def request(authorization: str | None = None, address: str | None = "10.0.0.1") -> Request:
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    client = None if address is None else (address, 1234)
    return Request({"type": "http", "headers": headers, "client": client})


def test_the_same_credentials_are_the_same_caller_from_anywhere() -> None:
    assert caller_of(request("Basic YTpi")) == caller_of(request("Basic YTpi", "10.0.0.2"))
    assert caller_of(request("Basic YTpi")) != caller_of(request("Basic YTpj"))
    assert caller_of(request("Basic YTpi")) != caller_of(request())


@pytest.mark.parametrize("empty", ["", "   ", "Basic", "Basic ", "Basic Og==", "Bearer "])
def test_without_credentials_the_address_counts(empty: str) -> None:
    assert caller_of(request(empty)) == caller_of(request()) == "address:10.0.0.1"
    assert caller_of(request(empty)) != caller_of(request(address="10.0.0.2"))


def test_a_caller_s_key_holds_no_credentials() -> None:
    assert "c2VjcmV0" not in caller_of(request("Bearer c2VjcmV0"))


def test_a_server_that_tells_no_address() -> None:
    assert caller_of(request(address=None)) == "address:"
