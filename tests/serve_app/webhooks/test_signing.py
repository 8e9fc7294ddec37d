"""Secrets of webhooks: whose they are, how they are rotated, and what a file of them may not hold."""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from serve_app.config.webhooks import WebhookSettings
from serve_app.webhooks.signing import BadSecrets, SigningSecrets, parse_secrets, signed_headers


def secret(text: str) -> str:
    return "whsec_" + base64.b64encode(text.encode().ljust(32)).decode()


def signatures(secrets: Sequence[Webhook], webhook_id: str, timestamp: int, body: bytes) -> str:
    return signed_headers(secrets, webhook_id, datetime.fromtimestamp(timestamp, UTC), body)["Webhook-Signature"]


def test_the_standard_s_own_example() -> None:
    """From the specification of Standard Webhooks, and its libraries' tests."""
    [key] = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")[""]
    now = datetime.fromtimestamp(1614265330, UTC)
    headers = signed_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", now, b'{"test": 2432232314}')
    assert headers == {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_documentation_s_receiver_knows_right_from_wrong() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def verified" in block)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  # what it does is what is tested
    keys = [parse_secrets(secret(text))[""][0] for text in ("old", "new")]
    headers = {"webhook-id": "1", "webhook-timestamp": "2", "webhook-signature": signatures(keys, "1", 2, b"{}")}
    for text in ("old", "new"):
        assert names["verified"](secret(text), headers, b"{}")
        assert not names["verified"](secret(text), headers, b"{ }")
        assert not names["verified"](secret(text), headers | {"webhook-timestamp": "3"}, b"{}")
    assert not names["verified"](secret("another"), headers, b"{}")


def test_a_file_is_read_again_and_each_secret_signs(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text(f"# old\n{secret('old')}\nalice {secret('alice')}  # hers\n")
    settings = WebhookSettings(allowed_hosts=("x",), secrets_file=path)
    keys = SigningSecrets(settings)
    old = signatures(keys.of("bob"), "1", 2, b"3")
    assert signatures(keys.of(""), "1", 2, b"3") == old
    assert signatures(keys.of("alice"), "1", 2, b"3") != old
    path.write_text(f"{secret('old')}\n{secret('new')}\n")
    assert signatures(keys.of("bob"), "1", 2, b"3") == old
    keys.refresh()
    assert signatures(keys.of("bob"), "1", 2, b"3").split()[0] == old
    assert len(signatures(keys.of("alice"), "1", 2, b"3").split()) == 2
    for broken in ("", "nonsense", "\udcff"):
        path.write_bytes(broken.encode(errors="surrogateescape"))
        keys.refresh()
        assert len(keys.of("bob")) == 2, "those before stay"
    path.unlink()
    keys.refresh()
    assert len(keys.of("bob")) == 2
    with pytest.raises(BadSecrets, match="No such file"):
        SigningSecrets(settings)


@pytest.mark.parametrize(
    "line",
    [
        "whsec_",
        "whsec_AAAA",
        "whsec_!!!",
        "whsec_" + "A" * 120,
        base64.b64encode(b"x" * 32).decode(),
        "a b whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "a/b whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ],
)
def test_a_mistake_is_named_by_its_line_and_not_repeated(line: str) -> None:
    with pytest.raises(BadSecrets, match="line 2") as caught:
        parse_secrets(f"\n{line}")
    assert "MfKQ" not in str(caught.value)


def test_there_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WebhookSettings(allowed_hosts=("x",), secrets_env="WEBHOOK_SECRETS")
    with pytest.raises(BadSecrets, match="WEBHOOK_SECRETS"):
        SigningSecrets(settings)
    monkeypatch.setenv("WEBHOOK_SECRETS", "# none\n")
    with pytest.raises(BadSecrets, match="no secret"):
        SigningSecrets(settings)
