"""Who counts as one caller, and what a request says of itself."""

import base64

import pytest
from starlette.requests import Request

from serve_app.auth.caller import Credentials, credentials_of, keyed_caller, unkeyed_caller, unknown_caller
from serve_app.auth.key_file import ApiKey, Scope


def request(authorization: str | None = None, address: str | None = "10.0.0.1", **headers: str) -> Request:
    if authorization is not None:
        headers["authorization"] = authorization
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    client = None if address is None else (address, 1234)
    return Request({"type": "http", "headers": raw, "client": client})


def name_of(one: Request) -> str:
    return unkeyed_caller(one, "r").name


def key(*scopes: Scope, tenant: str = "alice") -> ApiKey:
    return ApiKey("00000000", tenant, frozenset(scopes), bytes(32))


def test_without_keys_the_same_credentials_are_the_same_caller_from_anywhere() -> None:
    assert name_of(request("Basic YTpi")) == name_of(request("Basic YTpi", "10.0.0.2"))
    assert name_of(request("Basic YTpi")) != name_of(request("Basic YTpj"))
    assert name_of(request("Basic YTpi")) != name_of(request())


@pytest.mark.parametrize("empty", ["", "   ", "Basic", "Basic ", "Basic Og==", "Bearer "])
def test_without_credentials_the_address_counts(empty: str) -> None:
    assert name_of(request(empty)) == name_of(request()) == "address:10.0.0.1"
    assert name_of(request(empty)) != name_of(request(address="10.0.0.2"))


def test_a_caller_s_name_holds_no_credentials() -> None:
    assert "c2VjcmV0" not in name_of(request("Bearer c2VjcmV0"))
    assert "c2VjcmV0" not in repr(credentials_of(request("Bearer c2VjcmV0")))


def test_a_server_that_tells_no_address() -> None:
    assert name_of(request(address=None)) == "address:"


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (request("Bearer k"), ("", "k")),
        (request("bearer  k "), ("", "k")),
        (request("Basic " + base64.b64encode(b"me:k:k").decode()), ("me", "k:k")),
        (request(x_api_key=" k "), ("", "k")),
        (request("", x_api_key="k"), ("", "k")),
        (request("Basic Og==", x_api_key="k"), ("", "k")),
        (request("Bearer a", x_api_key="b"), ("", "a")),
        (request("Digest k"), ("", "")),
        (request("Basic !"), ("", "")),
        (request("Basic /w=="), ("", "")),
        (request(), ("", "")),
    ],
)
def test_where_a_key_may_stand(one: Request, expected: tuple[str, str]) -> None:
    assert credentials_of(one) == Credentials(*expected)


def test_a_tenant_s_people_are_kept_apart_by_the_names_they_give() -> None:
    mine, yours = (keyed_caller(key(Scope.READ), user, "r") for user in ("me", "you"))
    assert (mine.tenant, yours.tenant) == ("alice", "alice")
    assert mine.name != yours.name
    assert mine.name != keyed_caller(key(Scope.READ, tenant="bob"), "me", "r").name


def test_what_callers_may_do_and_see() -> None:
    reader, admin = (keyed_caller(key(scope), "", "r") for scope in (Scope.READ, Scope.ADMIN))
    assert [reader.may(scope) for scope in Scope] == [False, True, False]
    assert [admin.may(scope) for scope in Scope] == [True, True, True]
    assert (reader.sees, admin.sees) == ("alice", None)
    anybody, nobody = unkeyed_caller(request(), "r"), unknown_caller(request(), "r")
    assert [anybody.may(scope) for scope in Scope] == [True, True, True]
    assert [nobody.may(scope) for scope in Scope] == [False, False, False]
    assert (anybody.sees, nobody.sees) == ("", "")
