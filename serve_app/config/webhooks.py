"""Whom the service may call when a job has ended: the `webhooks` section of the settings."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from deployments.engine.config import Section

_HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
HostName = Annotated[str, StringConstraints(pattern=rf"^{_HOST}(?::[0-9]{{1,5}})?$", max_length=261)]

_PORT = re.compile(r":[0-9]+\Z", re.ASCII)


class WebhookSettings(Section):
    """Webhooks: calls of a client's own server when its job has ended.

    allowed_hosts: the hosts that a request's webhook_url may name, in lower case ("hooks.example.com"), each with
        its port where that isn't the scheme's own ("hooks.example.com:8443"). None: there are no webhooks.
    secrets_file: the file of the secrets that webhooks are signed with, relative to the directory the service
        starts in; a line for each, `whsec_…` or `tenant whsec_…`. Read again when it has changed.
    secrets_env: name of an environment variable with the same lines, in place of a file.
    allow_http: http:// as well as https://.
    allow_private_addresses: also addresses that aren't the public internet's: loopback, private and local networks.
    ca_file: certificates (PEM) of the authorities that receivers' certificates may be of; None: the usual ones.
    timeout_s: longest a call may take in all; it ends with the head of the answer.
    max_attempts: calls for one webhook in all; then it is given up.
    first_retry_s: seconds between the first call and the second; each pause is twice the one before.
    longest_retry_s: the longest pause.
    poll_s: seconds between two looks for jobs that have ended.
    """

    allowed_hosts: tuple[HostName, ...] = ()
    secrets_file: Path | None = None
    secrets_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    allow_http: bool = False
    allow_private_addresses: bool = False
    ca_file: Path | None = None
    timeout_s: float = Field(default=10.0, gt=0.0, le=300.0)
    max_attempts: int = Field(default=10, ge=1, le=100)
    first_retry_s: float = Field(default=5.0, gt=0.0, le=3_600.0)
    longest_retry_s: float = Field(default=3_600.0, gt=0.0, le=86_400.0)
    poll_s: float = Field(default=1.0, gt=0.0, le=3_600.0)

    @field_validator("allowed_hosts")
    @classmethod
    def _ports_are_ports(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            port = _PORT.search(host)
            if port is not None and not 1 <= int(port[0][1:]) <= 65_535:
                raise ValueError(f"{host}: a port is 1 to 65535")
        return hosts

    @model_validator(mode="after")
    def _signed(self) -> "WebhookSettings":
        if self.secrets_file is not None and self.secrets_env is not None:
            raise ValueError("secrets_file and secrets_env: name one of the two")
        if self.allowed_hosts and self.secrets_file is None and self.secrets_env is None:
            raise ValueError("allowed_hosts: webhooks are signed; name the secrets in secrets_file or secrets_env")
        return self

    @property
    def on(self) -> bool:
        """There are webhooks."""
        return bool(self.allowed_hosts)

    def allows(self, host: str, port: int, usual_port: int) -> bool:
        """A webhook_url may name this host and port. usual_port: its scheme's."""
        return f"{host}:{port}" in self.allowed_hosts or (port == usual_port and host in self.allowed_hosts)
