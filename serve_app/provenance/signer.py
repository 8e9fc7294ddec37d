"""Signs image files with Content Credentials (C2PA)."""

import asyncio
import io
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import c2pa
import httpx
from PIL import Image

from serve_app.config.provenance import C2paSettings
from serve_app.errors import SignatureFailed
from serve_app.observability.logs import get_logger
from serve_app.observability.metrics import FrontMetrics
from serve_app.provenance.certificates import BadCredentials, read_identity
from serve_app.provenance.content import definition
from serve_app.provenance.library import writing_context
from serve_app.provenance.reading import read_credentials
from serve_app.schemas.digital_source_type import GENERATED

log = get_logger(__name__)

_PNG = "image/png"


class ImageSigner:
    """Signs the images of one router. Every method may be called from several threads at once.

    It signs a picture of its own when it is made, so that a certificate that C2PA doesn't allow, or a command or an
    address that doesn't answer, stops the start.

    Args:
        settings: of Content Credentials.
        metrics: that count signatures.

    Raises:
        BadCredentials: the certificate, the key or what signs in its place can't be used.
    """

    def __init__(self, settings: C2paSettings, metrics: FrontMetrics | None = None) -> None:
        self.settings = settings
        self._metrics = metrics
        self._identity = read_identity(settings)
        self._context = writing_context()
        self._external = _external(settings)
        self._failures = threading.local()
        self._signer = self._c2pa_signer()
        try:
            self._try()
        except SignatureFailed as error:
            raise BadCredentials(f"a first signature failed: {error.__cause__ or error}") from error

    @property
    def name(self) -> str:
        """The certificate's common name."""
        return self._identity.name

    @property
    def expires(self) -> datetime:
        """When the certificate expires, UTC."""
        return self._identity.expires

    @property
    def anchors(self) -> str:
        """Certificates of the authorities that are trusted when an image is verified, PEM."""
        return self._identity.anchors

    def seconds_left(self) -> float:
        """Until the certificate expires; negative afterwards."""
        return self._identity.seconds_left()

    async def signed(
        self, data: bytes, content_type: str, said: Mapping[str, Any], ingredients: Sequence[bytes] = ()
    ) -> tuple[bytes, bool]:
        """As `sign`, in a thread, and True; or the file as it is, and False, where the settings allow that."""
        try:
            file = await asyncio.to_thread(self.sign, data, content_type, said, ingredients)
        except SignatureFailed as error:
            self._count("failed")
            log.warning("an image couldn't be signed", cause=repr(error.__cause__ or error))
            if self.settings.on_failure == "fail":
                raise
            return data, False
        self._count("signed")
        return file, True

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.signature(outcome)

    def sign(self, data: bytes, content_type: str, said: Mapping[str, Any], ingredients: Sequence[bytes] = ()) -> bytes:
        """The file with its credentials. It takes 10 to 50 ms or longer: call it in a thread.

        Args:
            data: PNG, JPEG or WebP.
            content_type: its MIME type.
            said: what the credentials say, as `content.definition_of` returns it.
            ingredients: as `ingredients.archived` returned them.

        Raises:
            SignatureFailed: it couldn't be signed; the cause is in `__cause__`.
        """
        if self.seconds_left() <= 0:
            raise SignatureFailed(f"the certificate that signs images expired on {self.expires:%Y-%m-%d}")
        self._failures.error = None
        signed = io.BytesIO()
        try:
            with c2pa.Builder(json.dumps(said), self._context) as builder:
                for ingredient in ingredients:
                    builder.add_ingredient_from_archive(io.BytesIO(ingredient))
                builder.sign(self._signer, content_type, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise SignatureFailed("the image couldn't be signed") from (self._failures.error or error)
        return signed.getvalue()

    def _c2pa_signer(self) -> c2pa.Signer:
        identity, timestamp = self._identity, self.settings.timestamp_url
        try:
            if self._external is None:
                info = c2pa.C2paSignerInfo(
                    identity.algorithm, identity.chain.encode(), (identity.key or "").encode(), timestamp
                )
                return c2pa.Signer.from_info(info)
            algorithm = c2pa.C2paSigningAlg[identity.algorithm.upper()]
            return c2pa.Signer.from_callback(self._signature, algorithm, identity.chain, timestamp)
        except c2pa.C2paError as error:
            raise BadCredentials(f"{identity.name!r} can't sign: {error}") from None

    def _signature(self, data: bytes) -> bytes:
        """By the command or the address; empty where it fails, because nothing may be raised through the library."""
        try:
            return b"" if self._external is None else self._external(data)
        except (OSError, subprocess.SubprocessError, httpx.HTTPError) as error:
            self._failures.error = error
            return b""

    def _try(self) -> None:
        pixel = io.BytesIO()
        Image.new("RGB", (1, 1)).save(pixel, "PNG")
        trial = definition(_PNG, GENERATED, {}, began=False, ingredients=0)
        signed = self.sign(pixel.getvalue(), _PNG, trial)
        credentials = read_credentials(signed, _PNG, self.anchors)
        if credentials is None or credentials.state == "invalid":
            problems = [] if credentials is None else [problem.explanation for problem in credentials.problems]
            raise BadCredentials(f"{self._identity.name!r} isn't fit to sign images: {'; '.join(problems)}")


def _external(settings: C2paSettings) -> Callable[[bytes], bytes] | None:
    """What signs in place of a key, if something does."""
    command, url, timeout_s = settings.key_command, settings.key_url, settings.signer_timeout_s
    if command is not None:

        def by_command(data: bytes) -> bytes:
            return subprocess.run(command, input=data, capture_output=True, timeout=timeout_s, check=True).stdout  # noqa: S603  # the operator's

        return by_command
    if url is not None:

        def by_url(data: bytes) -> bytes:
            answer = httpx.post(
                url,
                content=data,
                timeout=timeout_s,
                trust_env=False,
                headers={"Content-Type": "application/octet-stream"},
            )
            return answer.raise_for_status().content

        return by_url
    return None
