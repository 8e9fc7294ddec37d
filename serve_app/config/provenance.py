"""The `provenance` section of the settings."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deployments.engine.config import Section

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

# where a certificate may come from, and what signs with it: of each group one
_CHAINS = ("development_folder", "certificates_file", "certificates_env")
_KEYS = ("key_file", "key_env", "key_command", "key_url")

DWT_DCT_SVD = "dwt-dct-svd"
"""The watermark that needs no weights."""


class C2paSettings(Section):
    """Content Credentials (C2PA) in each image file."""

    development_folder: Path | None = Field(default=None, examples=["darkroom-data/provenance"])
    """Folder of a development certificate, relative to the directory that the service starts in; the first start makes
    one. It proves nothing to anybody: not for production."""
    certificates_file: Path | None = Field(default=None, examples=["/etc/darkroom/certificates.pem"])
    """File of the certificate that signs and those that signed it (PEM), without the root, on nodes with a router."""
    certificates_env: str | None = Field(default=None, pattern=_VARIABLE, examples=["DARKROOM_CERTIFICATES"])
    """Name of an environment variable with the same text, in place of a file."""
    key_file: Path | None = Field(default=None, examples=["/etc/darkroom/key.pem"])
    """File of the private key (PEM, PKCS#8) of the certificate, on nodes with a router."""
    key_env: str | None = Field(default=None, pattern=_VARIABLE, examples=["DARKROOM_SIGNING_KEY"])
    """Name of an environment variable with the same text."""
    key_command: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None, min_length=1, examples=[["/usr/local/bin/sign-with-hsm"]]
    )
    """Command that signs in place of a key: the bytes to sign on stdin, the signature on stdout."""
    key_url: str | None = Field(default=None, pattern=r"^https?://", examples=["http://signer.internal:8080/sign"])
    """Address that signs in place of a key: the bytes to sign as the body of a POST, the signature as the answer's."""
    signer_timeout_s: float = Field(default=5.0, gt=0.0, le=300.0)
    """Most seconds of one call of key_command or key_url."""
    timestamp_url: str | None = Field(default=None, pattern=r"^https?://", examples=["http://timestamp.digicert.com"])
    """Time-stamping authority (RFC 3161) that is asked for each image. With a time stamp a signature stays valid after
    its certificate has expired."""
    prompt: bool = False
    """Whether the credentials hold the prompt. (The file's parameters do in any case.)"""
    on_failure: Literal["fail", "unsigned"] = "fail"
    """What happens to an image that can't be signed: "fail" fails its job, "unsigned" returns it so, with `signed`
    false."""
    trusted_file: Path | None = Field(default=None, examples=["/etc/darkroom/trusted.pem"])
    """Certificates (PEM) of the authorities that POST /verify trusts, as the C2PA trust list. Without one it trusts the
    development certificate alone."""

    @model_validator(mode="after")
    def _one_chain_one_key(self) -> "C2paSettings":
        chains = [name for name in _CHAINS if getattr(self, name) is not None]
        keys = [name for name in _KEYS if getattr(self, name) is not None]
        if len(chains) != 1:
            raise ValueError(f"needs one of {', '.join(_CHAINS)}, not {' and '.join(chains) or 'none'}")
        if chains == ["development_folder"]:
            if keys:
                raise ValueError(f"development_folder has a key of its own: leave {' and '.join(keys)} out")
        elif len(keys) != 1:
            raise ValueError(f"{chains[0]} needs one of {', '.join(_KEYS)}, not {' and '.join(keys) or 'none'}")
        return self


class WatermarkSettings(Section):
    """An imperceptible mark in the pixels of each image."""

    service_id: int = Field(ge=0, le=65_535, strict=True, examples=[4711])
    """Number of the service, 0 to 65535, that the mark names. Choose one at random; services that answer for each
    other's images share it."""
    method: str = Field(default=DWT_DCT_SVD, min_length=1, examples=["trustmark"])
    """How pictures are marked: "dwt-dct-svd", or the name of a plug-in, an entry point of the group darkroom.watermarks
    with TrustMark's interface, installed on nodes with a router."""


class ProvenanceSettings(Section):
    """How images say that they were generated."""

    c2pa: C2paSettings | None = Field(default=None, examples=[{"development_folder": "darkroom-data/provenance"}])
    """Content Credentials in each image file; null signs nothing."""
    watermark: WatermarkSettings | None = Field(default=None, examples=[{"service_id": 4711}])
    """A mark in the pixels of each image; null marks none."""
