"""Certificates for tests: authorities, what they sign, and what is wrong with some."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serve_app.config.provenance import C2paSettings

KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ps256": lambda: rsa.generate_private_key(65_537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True)
class Signer:
    """A certificate, its key, and what it was signed by."""

    key: Any
    certificate: x509.Certificate
    authority: x509.Certificate

    @property
    def chain(self) -> str:
        return pem(self.certificate) + pem(self.authority)

    def private(self, password: bytes | None = None) -> str:
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()

    def settings(self, folder: Path, **changes: Any) -> C2paSettings:
        """Settings that name files in `folder`, which are written."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {"certificates_file": self.chain, "key_file": self.private(), "trusted_file": pem(self.authority)}
        for name, text in files.items():
            (folder / name).write_text(text)
        return C2paSettings.model_validate({**{name: folder / name for name in files}, **changes})


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


SIGNS_DOCUMENTS, SIGNS_TIME = ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.TIME_STAMPING


def new_signer(
    algorithm: str = "es256",
    *,
    valid: tuple[timedelta, timedelta] | None = None,
    purpose: x509.ObjectIdentifier | None = SIGNS_DOCUMENTS,
) -> Signer:
    """A signer with an authority of its own.

    Args:
        algorithm: C2PA's name.
        valid: from and until, seen from now.
        purpose: what the certificate says that it is for.
    """
    authority_key, key = KEYS["es256"](), KEYS[algorithm]()
    subject, issuer = _name("images of tests"), _name("authority of tests")
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    builder = (
        _builder(subject, issuer, key.public_key(), valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return Signer(key, builder.sign(authority_key, hashes.SHA256()), authority)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, valid: tuple[timedelta, timedelta] | None
) -> x509.CertificateBuilder:
    since, until = valid or (timedelta(hours=-1), timedelta(days=365))
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
