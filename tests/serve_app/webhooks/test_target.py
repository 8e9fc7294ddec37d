"""A webhook_url: plain URLs of allowed hosts, and nothing that another reader could understand in another way."""

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.engine.errors import InvalidRequest
from serve_app.config.webhooks import WebhookSettings
from serve_app.webhooks.target import Target, target_of
from tests.serve_app.api.test_no_fetching import VECTORS


def settings(**fields: Any) -> WebhookSettings:
    hosts = ["hooks.example.com", "hooks.example.com:8443", "[2001:db8::1]:9000"]
    return WebhookSettings.model_validate({"allowed_hosts": hosts, "secrets_env": "SECRETS", **fields})


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.com", Target("https", "hooks.example.com", 443, "/")),
        ("https://hooks.example.com:443/a?b=c%20d", Target("https", "hooks.example.com", 443, "/a?b=c%20d")),
        ("https://hooks.example.com:8443/", Target("https", "hooks.example.com", 8443, "/")),
        ("https://[2001:db8::1]:9000/x", Target("https", "2001:db8::1", 9000, "/x")),
    ],
)
def test_plain_urls(url: str, target: Target) -> None:
    assert target_of(url, settings()) == target


def test_http_only_where_it_is_allowed() -> None:
    url = "http://hooks.example.com/x"
    with pytest.raises(InvalidRequest):
        target_of(url, settings())
    assert target_of(url, settings(allow_http=True)) == Target("http", "hooks.example.com", 80, "/x")
    with pytest.raises(InvalidRequest):
        target_of("http://hooks.example.com:443/x", settings(allow_http=True))


ODD = [
    "https://hooks.example.com:444/", "https://HOOKS.example.com/", "https://hooks.example.com./",
    "https://hooks.example.com@evil.example/", "https://user@hooks.example.com/", "https://u:p@hooks.example.com/",
    "https://evil.example/hooks.example.com", "https://hooks.example.com.evil.example/", "https://example.com/",
    "https://hooks.example.com#/", "https://hooks.example.com/#x", "https://hooks.example.com\\@evil.example/",
    "https://hooks.example.com/\\x", "https:/hooks.example.com/", "https:hooks.example.com", "//hooks.example.com/",
    "https://hooks.example.com/ x", "https://hooks.example.com/\r\nX: y", "https://hooks.example.com/\u00e9",
    "https://hooks.example.com?x", "https://hooks.example.com:/", "https://hooks.example.com:0443x/", " https://hooks.example.com/",
    "https://hooks.example.com/\x00", "https://hooks\u3002example.com/", "https://%68ooks.example.com/", "https:///hooks.example.com",
    "https://[::ffff:127.0.0.1]/", "https://hooks.example.com/" + "a" * 2_000, "ftp://hooks.example.com/", "",
]  # fmt: skip


@pytest.mark.parametrize("url", [*ODD, *VECTORS])
def test_whatever_else_there_is_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        target_of(url, settings(allow_http=True, allow_private_addresses=True))
    assert caught.value.field == "webhook_url"
    assert not url or len(url) < 4 or url not in str(caught.value)


def test_without_allowed_hosts_there_are_no_webhooks() -> None:
    with pytest.raises(InvalidRequest, match="calls no webhooks"):
        target_of("https://hooks.example.com/", WebhookSettings())


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets_env": None},
        {"secrets_file": "secrets"},
        {"allowed_hosts": ["Hooks.example.com"]},
        {"allowed_hosts": ["https://hooks.example.com"]},
        {"allowed_hosts": ["hooks.example.com/path"]},
        {"allowed_hosts": ["*.example.com"]},
        {"allowed_hosts": ["hooks.example.com:99999"]},
        {"max_attempts": 0},
        {"unknown": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**fields)
