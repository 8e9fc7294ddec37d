"""The certificate that signs images and its private key, as a router reads them when it starts."""

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from serve_app.config.provenance import C2paSettings
from serve_app.provenance.development import development_files

EXPIRES_SOON_S = 30 * 86_400.0
"""Seconds before its end from which on a certificate is said to expire."""

# C2PA's names of the algorithms that it allows, by the curve of the key
_OF_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class BadCredentials(ValueError):
    """The certificate or the key can't be used; the message says why, never what is in a key."""


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """What images are signed as.

    Attributes:
        chain: the certificate and those that signed it, PEM.
        key: PEM; None where a command or an address signs.
        algorithm: C2PA's name, such as "es256".
        name: the certificate's common name.
        expires: of the certificate, UTC.
        anchors: certificates of the authorities that are trusted when an image is verified, PEM; empty for none.
    """

    chain: str
    key: str | None
    algorithm: str
    name: str
    expires: datetime
    anchors: str

    def seconds_left(self) -> float:
        """Until the certificate expires; negative afterwards."""
        return (self.expires - datetime.now(UTC)).total_seconds()


def read_identity(settings: C2paSettings) -> SigningIdentity:
    """Read what the settings name; a development certificate is made if it isn't there.

    Raises:
        BadCredentials: something is missing, unreadable, expired, or doesn't belong together.
    """
    anchors = ""
    key: str | None = None
    if settings.development_folder is not None:
        try:
            files = development_files(settings.development_folder)
        except OSError as error:
            raise BadCredentials(f"{settings.development_folder} can't be made: {error.strerror}") from None
        chain, key, anchors = (_file(path) for path in (files.certificates, files.key, files.authority))
        source = str(files.certificates)
    else:
        chain, source = _text(settings.certificates_file, settings.certificates_env)
        if settings.key_file is not None or settings.key_env is not None:
            key, _ = _text(settings.key_file, settings.key_env)
    if settings.key_command is not None and shutil.which(settings.key_command[0]) is None:
        raise BadCredentials(f"key_command: there is no program {settings.key_command[0]!r}, or it isn't executable")
    if settings.trusted_file is not None:
        anchors = _file(settings.trusted_file)
        _certificates(anchors, str(settings.trusted_file))
    certificates = _certificates(chain, source)
    _check_chain(certificates, source)
    signing = certificates[0]
    if key is not None:
        _check_key(key, signing)
    return SigningIdentity(
        chain, key, _algorithm(signing, source), _common_name(signing), signing.not_valid_after_utc, anchors
    )


def _check_chain(certificates: list[x509.Certificate], source: str) -> None:
    now = datetime.now(UTC)
    for certificate in certificates:
        if certificate.not_valid_after_utc <= now:
            raise BadCredentials(
                f"{source}: the certificate {_common_name(certificate)!r} expired on "
                f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            )
        if certificate.not_valid_before_utc > now:
            raise BadCredentials(
                f"{source}: the certificate {_common_name(certificate)!r} is valid from "
                f"{certificate.not_valid_before_utc:%Y-%m-%d} on"
            )
    for certificate, issuer in pairwise(certificates):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, TypeError, ValueError):
            raise BadCredentials(
                f"{source}: {_common_name(certificate)!r} isn't signed by {_common_name(issuer)!r}, which follows it: "
                "the file begins with the certificate that signs images, and each is followed by its issuer's"
            ) from None


def _check_key(key: str, certificate: x509.Certificate) -> None:
    try:
        private = load_pem_private_key(key.encode(), password=None)
    except TypeError:
        raise BadCredentials(
            "the private key is encrypted: give it without a password, or sign by key_command"
        ) from None
    except ValueError:
        raise BadCredentials("the private key isn't one in PEM (-----BEGIN PRIVATE KEY-----)") from None
    mine, its = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (private.public_key(), certificate.public_key())
    )
    if mine != its:
        raise BadCredentials(f"the private key isn't that of the certificate {_common_name(certificate)!r}")


def _algorithm(certificate: x509.Certificate, source: str) -> str:
    public = certificate.public_key()
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048:
        return "ps256"
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _OF_CURVES:
        return _OF_CURVES[public.curve.name]
    raise BadCredentials(
        f"{source}: C2PA allows keys on the curves P-256, P-384, P-521 and Ed25519, and RSA from 2048 bits on; "
        f"{_common_name(certificate)!r} has another one"
    )


def _certificates(text: str, source: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        raise BadCredentials(f"{source} holds no certificates in PEM (-----BEGIN CERTIFICATE-----)") from None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _text(path: Path | None, variable: str | None) -> tuple[str, str]:
    """What a file or a variable holds, and which it is."""
    if path is not None:
        return _file(path), str(path)
    text = os.environ.get(variable or "", "")
    if not text:
        raise BadCredentials(f"the environment variable {variable} isn't set for the router")
    return text, str(variable)


def _file(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError as error:
        raise BadCredentials(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadCredentials(f"{path} isn't PEM") from None
