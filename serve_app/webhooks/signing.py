"""The secrets that webhooks are signed with, as Standard Webhooks (standardwebhooks.com) has them, and their headers.

A secret is `whsec_` and base64 of 24 to 64 random bytes. To rotate one: add the new line, move the receivers, drop the
old line. Every secret of a tenant signs.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime

from standardwebhooks import Webhook

from serve_app.config.secret_lines import TENANT, read_lines
from serve_app.config.webhooks import WebhookSettings
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64

# whose a secret is that names no tenant: everybody's who has none of their own
_EVERYBODY = ""


class BadSecrets(ValueError):
    """The secrets can't be read; the message names the line, never what is in it."""


def parse_secrets(text: str) -> Mapping[str, tuple[Webhook, ...]]:
    """The secrets of each tenant. Raises BadSecrets."""
    secrets: dict[str, tuple[Webhook, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        *named, written = words
        tenant = named[0] if named else _EVERYBODY
        if len(named) > 1 or (named and TENANT.fullmatch(tenant) is None):
            raise BadSecrets(f"line {number}: not `whsec_…` or `tenant whsec_…`")
        try:
            secret = base64.b64decode(written.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not written.startswith(_PREFIX) or not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
            raise BadSecrets(
                f"line {number}: a secret is {_PREFIX} and base64 of {_LEAST_BYTES} to {_MOST_BYTES} random bytes"
            )
        secrets[tenant] = (*secrets.get(tenant, ()), Webhook(secret))
    return secrets


def signed_headers(secrets: Sequence[Webhook], webhook_id: str, now: datetime, body: bytes) -> dict[str, str]:
    """The headers of one attempt.

    Args:
        secrets: Of the job's tenant.
        webhook_id: The same for every attempt, so that the receiver knows what it has had.
        now: In UTC.
        body: UTF-8.
    """
    return {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": " ".join(secret.sign(webhook_id, now, body.decode()) for secret in secrets),
    }


class SigningSecrets:
    """The secrets that are good now. Raises BadSecrets at the start, also where there is none."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._secrets = self._read()
        if not self._secrets:
            raise BadSecrets(f"{_source(settings)} holds no secret: {_PREFIX} and base64 of 32 random bytes is one")

    def refresh(self) -> None:
        """Read the file again; one that can't be read, or holds a mistake, changes nothing, and the log says why."""
        try:
            self._secrets = self._read() or self._secrets
        except BadSecrets as error:
            log.error("the webhooks' secrets were not read again: those before stay", reason=str(error))  # noqa: TRY400

    def of(self, tenant: str) -> tuple[Webhook, ...]:
        """A tenant's own secrets, or else those of everybody; there may be none."""
        return self._secrets.get(tenant) or self._secrets.get(_EVERYBODY, ())

    def _read(self) -> Mapping[str, tuple[Webhook, ...]]:
        file, variable = self._settings.secrets_file, self._settings.secrets_env
        return parse_secrets(read_lines(file, variable, setting="webhooks.secrets_env", error=BadSecrets))


def _source(settings: WebhookSettings) -> str:
    return str(settings.secrets_file or f"webhooks.secrets_env {settings.secrets_env}")
