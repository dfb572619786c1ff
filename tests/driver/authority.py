"""Certificates for a cloud at 127.0.0.1: good ones, expired ones, and those of an authority that nobody trusts."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Signs certificates; its own is at `ca`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def made(cls, folder: Path) -> "Authority":
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        who = _name(f"authority {folder.name}")
        made = _builder(who, who, key.public_key(), expired=False)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        authority = cls(folder, key, made.add_extension(constraints, critical=True).sign(key, hashes.SHA256()))
        authority.ca.write_bytes(_pem(authority.certificate))
        return authority

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def certify(self, *, expired: bool = False) -> Path:
        """A file with a new key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_name("cloud"), self.certificate.subject, key.public_key(), expired=expired)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = made.add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        path = self.folder / f"{'expired' if expired else 'good'}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + _pem(certificate)
        )
        return path


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, expired: bool
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    ends = now - dt.timedelta(days=1) if expired else now + dt.timedelta(days=365)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30)).not_valid_after(ends)
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
