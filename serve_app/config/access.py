"""The `access` section of the settings: API keys, rate limits and quotas."""

from pathlib import Path

from limits import RateLimitItem, parse_many
from pydantic import Field, field_validator, model_validator

from deployments.engine.config import Section


class AccessSettings(Section):
    """API keys, rate limits and quotas."""

    keys_file: Path | None = Field(default=None, examples=["darkroom-data/keys"])
    """File of API keys, one a line, relative to the directory that the service starts in. Changes take effect without a
    restart."""
    keys_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", examples=["DARKROOM_KEYS"])
    """Name of an environment variable with the same lines, in place of a file; read once."""
    open_to_all: bool = False
    """Serve without keys on addresses that other machines can reach. Nothing else allows that."""
    reload_s: float = Field(default=1.0, ge=0.0, le=3_600.0)
    """Seconds between two looks at keys_file."""
    requests: str | None = "50/second"
    """Most requests of one key, such as "50/second; 10000/hour"; null is no limit. Each router counts by itself.
    Health, readiness and documentation don't count."""
    generations: str | None = "120/minute"
    """Most requests for images of one key, written the same way."""
    gpu_seconds: str | None = Field(default=None, examples=["600/hour; 5000/day"])
    """Most seconds of the stages' devices that one key's jobs may take, such as "600/hour; 5000/day", in windows of a
    minute or longer. Counted in the job database for all routers together."""
    image_link_s: int = Field(default=3_600, ge=1, le=30 * 86_400)
    """Least seconds that an image's address works without a key; it works at most twice as long."""

    @field_validator("requests", "generations", "gpu_seconds")
    @classmethod
    def _limit_is_one(cls, text: str | None) -> str | None:
        limits_of(text)
        return text

    @field_validator("gpu_seconds")
    @classmethod
    def _quota_is_of_minutes(cls, text: str | None) -> str | None:
        if any(limit.get_expiry() < 60 for limit in limits_of(text)):
            raise ValueError("gpu_seconds: the shortest window is a minute, such as 600/hour")
        return text

    @model_validator(mode="after")
    def _one_source(self) -> "AccessSettings":
        if self.keys_file is not None and self.keys_env is not None:
            raise ValueError("keys_file and keys_env: set only one of the two")
        if self.keyed and self.open_to_all:
            raise ValueError("open_to_all: has no effect with keys; remove it")
        return self

    @property
    def quotas(self) -> list[RateLimitItem]:
        """Quotas of device seconds for each key."""
        return limits_of(self.gpu_seconds)

    @property
    def keyed(self) -> bool:
        """Whether requests need a key."""
        return self.keys_file is not None or self.keys_env is not None


def limits_of(text: str | None) -> list[RateLimitItem]:
    """Parse a setting's rate limits. Raises ValueError."""
    if text is None:
        return []
    try:
        return parse_many(text)
    except ValueError:
        raise ValueError(
            f'{text!r} is not a rate limit; expected something like "50/second" or "120/minute; 2000/day"'
        ) from None
