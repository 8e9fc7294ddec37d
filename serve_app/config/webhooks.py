"""The `webhooks` section of the settings."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from deployments.engine.config import Section

_HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
HostName = Annotated[str, StringConstraints(pattern=rf"^{_HOST}(?::[0-9]{{1,5}})?$", max_length=261)]

_PORT = re.compile(r":[0-9]+\Z", re.ASCII)


class WebhookSettings(Section):
    """Webhooks: calls of a client's own server when its job has ended."""

    allowed_hosts: tuple[HostName, ...] = Field(default=(), examples=[["hooks.example.com"]])
    """Hosts that a request's webhook_url may name, in lower case, with the port where it isn't the scheme's own
    ("hooks.example.com:8443"). Without any there are no webhooks."""
    secrets_file: Path | None = Field(default=None, examples=["darkroom-data/webhook-secrets"])
    """File of the secrets that webhooks are signed with, relative to the directory that the service starts in; each
    line is `whsec_…` or `tenant whsec_…`. Changes take effect without a restart."""
    secrets_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", examples=["DARKROOM_WEBHOOK_SECRETS"]
    )
    """Name of an environment variable with the same lines, in place of a file."""
    allow_http: bool = False
    """Allow http:// besides https://."""
    allow_private_addresses: bool = False
    """Allow loopback, private and local network addresses."""
    ca_file: Path | None = Field(default=None, examples=["/etc/ssl/private-ca.pem"])
    """Certificates (PEM) of the authorities that may sign receivers' certificates, in place of the usual ones."""
    timeout_s: float = Field(default=10.0, gt=0.0, le=300.0)
    """Most seconds of one call, until the answer's headers have arrived."""
    max_attempts: int = Field(default=10, ge=1, le=100)
    """Most calls for one webhook; then it is given up."""
    first_retry_s: float = Field(default=5.0, gt=0.0, le=3_600.0)
    """Seconds between the first call and the second; each pause is twice the one before."""
    longest_retry_s: float = Field(default=3_600.0, gt=0.0, le=86_400.0)
    """Longest pause between two calls, in seconds."""
    poll_s: float = Field(default=1.0, gt=0.0, le=3_600.0)
    """Seconds between two searches for jobs that have ended."""

    @field_validator("allowed_hosts")
    @classmethod
    def _ports_are_ports(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            port = _PORT.search(host)
            if port is not None and not 1 <= int(port[0][1:]) <= 65_535:
                raise ValueError(f"{host}: the port must be 1 to 65535")
        return hosts

    @model_validator(mode="after")
    def _signed(self) -> "WebhookSettings":
        if self.secrets_file is not None and self.secrets_env is not None:
            raise ValueError("secrets_file and secrets_env: set only one of the two")
        if self.allowed_hosts and self.secrets_file is None and self.secrets_env is None:
            raise ValueError("allowed_hosts: needs secrets_file or secrets_env, because webhooks are signed")
        return self

    @property
    def on(self) -> bool:
        """Whether webhooks are sent."""
        return bool(self.allowed_hosts)

    def allows(self, host: str, port: int, usual_port: int) -> bool:
        """Whether a webhook_url may name this host and port; `usual_port` is its scheme's."""
        return f"{host}:{port}" in self.allowed_hosts or (port == usual_port and host in self.allowed_hosts)
