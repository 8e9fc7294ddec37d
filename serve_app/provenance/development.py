"""A certificate for trying things out: an authority of its own signs it, whose key is kept nowhere."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

_VALID = timedelta(days=3_650)
_NOT_FOR_PRODUCTION = "Darkroom development, not for production"


@dataclass(frozen=True, slots=True)
class DevelopmentFiles:
    """The files in a folder: PEM all of them."""

    authority: Path
    certificates: Path
    key: Path


def development_files(folder: Path) -> DevelopmentFiles:
    """The files in `folder`, which are made if it doesn't exist: whole or not at all, by the first who comes."""
    files = DevelopmentFiles(folder / "authority.pem", folder / "certificates.pem", folder / "key.pem")
    if files.certificates.exists():
        return files
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(unfinished)
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished)
        if not files.certificates.exists():  # another router was not the reason
            raise
    return files


def _write(folder: Path) -> None:
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, name = (_name(f"{_NOT_FOR_PRODUCTION} ({part})") for part in ("authority", "images"))
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(name, authority_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = certificate.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)
    for file, data in (("authority", authority.public_bytes(Encoding.PEM)), ("certificates", chain), ("key", private)):
        path = folder / f"{file}.pem"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if file == "key" else 0o644)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, _NOT_FOR_PRODUCTION),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
