"""Who may use the service, and how much of it: the `access` section of the settings."""

from pathlib import Path

from limits import RateLimitItem, parse_many
from pydantic import Field, field_validator, model_validator

from deployments.engine.config import Section


class AccessSettings(Section):
    """API keys, and what each may ask for.

    keys_file: the file of API keys, a line for each (`python -m serve_app.auth.make_key` writes them), relative to the
        directory the service starts in. Read again within reload_s of a change, without a restart.
    keys_env: name of an environment variable with the same lines, in place of a file; read once.
    open_to_all: serve without keys also on other addresses than loopback. Nothing else allows that.
    reload_s: seconds between two looks at the file.
    requests: most requests of one key, as `limits` writes them ("50/second; 10000/hour"); None is no limit. Counted
        in each router by itself; health, readiness and the documentation aren't counted.
    generations: the same for requests for images.
    gpu_seconds: most seconds of the stages' devices that one key's jobs may take ("600/hour; 5000/day"), windows of a
        minute at least; None is no quota. Counted in the job database, for all routers together.
    image_link_s: seconds that the images' addresses in answers work without a key, at least; at most twice as many.
    """

    keys_file: Path | None = None
    keys_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    open_to_all: bool = False
    reload_s: float = Field(default=1.0, ge=0.0, le=3_600.0)
    requests: str | None = "50/second"
    generations: str | None = "120/minute"
    gpu_seconds: str | None = None
    image_link_s: int = Field(default=3_600, ge=1, le=30 * 86_400)

    @field_validator("requests", "generations", "gpu_seconds")
    @classmethod
    def _limit_is_one(cls, text: str | None) -> str | None:
        limits_of(text)
        return text

    @field_validator("gpu_seconds")
    @classmethod
    def _quota_is_of_minutes(cls, text: str | None) -> str | None:
        if any(limit.get_expiry() < 60 for limit in limits_of(text)):
            raise ValueError("gpu_seconds: device seconds are counted by the minute, not the second")
        return text

    @model_validator(mode="after")
    def _one_source(self) -> "AccessSettings":
        if self.keys_file is not None and self.keys_env is not None:
            raise ValueError("keys_file and keys_env: name one of the two")
        if self.keyed and self.open_to_all:
            raise ValueError("open_to_all: with keys it has no meaning; leave it out")
        return self

    @property
    def quotas(self) -> list[RateLimitItem]:
        """Device seconds a key may spend; none is no quota."""
        return limits_of(self.gpu_seconds)

    @property
    def keyed(self) -> bool:
        """Keys are asked for."""
        return self.keys_file is not None or self.keys_env is not None


def limits_of(text: str | None) -> list[RateLimitItem]:
    """The rate limits that a setting names. Raises ValueError."""
    if text is None:
        return []
    try:
        return parse_many(text)
    except ValueError:
        raise ValueError(f'{text!r} is no rate limit; "50/second" and "120/minute; 2000/day" are') from None
