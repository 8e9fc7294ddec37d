"""Receivers of webhooks, and settings that allow them."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.config.settings import Settings
from tests.serve_app.webhooks.receiver import Receiver, receiving

SECRET = "whsec_" + base64.b64encode(b"a secret that only tests know...").decode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


@pytest.fixture
def settings(raw_settings: dict[str, Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("WEBHOOK_SECRETS", SECRET)
    raw_settings["webhooks"] = {
        "allowed_hosts": [receiver.host],
        "secrets_env": "WEBHOOK_SECRETS",
        "allow_http": True,
        "allow_private_addresses": True,
        "timeout_s": 5.0,
        "max_attempts": 3,
        "first_retry_s": 10.0,
    }
    return Settings.model_validate(raw_settings)
