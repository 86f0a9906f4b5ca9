"""Who a node is: its key, its certificate, and the cluster authority that signs it.

Pure: bytes and `now` (Unix seconds) in, bytes out. Never sockets, files, clocks or torch here. All keys are ECDSA
P-256 (FIPS 186-5), all certificates X.509 v3 (RFC 5280). Randomness comes from the operating system.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport.clocks import SLACK_S
from transport.errors import TrustError
from transport.types import NodeId

LEAF_DAYS: Final = 180
API_LEAF_DAYS: Final = 30
RENEW_AFTER_DAYS: Final = 30
AUTHORITY_DAYS: Final = 20 * 365
BACKDATE_S: Final = SLACK_S
"""Certificates start this much before `now`: two home machines seldom agree on the time."""
CSR_LIMIT_BYTES: Final = 4096
NAME_LIMIT: Final = 64
"""Characters in a cluster's name: X.520's bound for a common name."""

_HEAD_MARK: Final = "head"
"""The organisational unit in the certificate of the machine that holds the authority, and in no other."""

_UNREADABLE: Final = (
    ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What `cryptography` raises for DER that is broken, or of a kind that it does not know."""

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that a node needs to prove that it belongs to its cluster. `head` is the node that holds the authority."""

    node_id: NodeId
    name: str
    cluster: str
    head: NodeId
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)

    @property
    def cluster_id(self) -> str:
        """SHA-256 of the authority's DER certificate, 64 hex digits; mDNS shows the first 16."""
        return cluster_id_of(to_der(self.ca_pem)).hex()

    @property
    def certificate_der(self) -> bytes:
        return to_der(self.certificate_pem)

    def check(self, now: float | None = None) -> None:
        """Raises TrustError unless key, certificate and authority belong together, and the certificate is not over."""
        end = _parse_certificate(self.certificate_der).not_valid_after_utc
        if now is not None and now > end.timestamp():
            raise TrustError(
                f"This node's certificate ended on {end:%Y-%m-%d}.",
                hint="Join the cluster again with a code from 'vramancer invite'.",
            )
        if node_id_of_key(self.key_pem) != self.node_id:
            raise TrustError("The node's key does not belong to its id.")
        check_issued(self.certificate_der, to_der(self.ca_pem), self.node_id)

    def renewable(self, now: float) -> bool:
        """True from day 30 of the certificate's life on, and after its end."""
        start = _parse_certificate(self.certificate_der).not_valid_before_utc.timestamp() + BACKDATE_S
        return now >= start + RENEW_AFTER_DAYS * 86400

    def expired(self, now: float) -> bool:
        return now > _parse_certificate(self.certificate_der).not_valid_after_utc.timestamp()

    def renewed(self, certificate_der: bytes) -> Credentials:
        """The same node with a younger certificate. Raises TrustError unless it is one of this node and cluster."""
        check_issued(certificate_der, to_der(self.ca_pem), self.node_id)
        old, new = _parse_certificate(self.certificate_der), _parse_certificate(certificate_der)
        if new.not_valid_after_utc < old.not_valid_after_utc:
            raise TrustError("The master sent a certificate that ends before the one in use.")
        return replace(self, certificate_pem=to_pem(certificate_der))


@dataclass(frozen=True, slots=True)
class ClusterAuthority:
    """The cluster's own certificate authority. Whoever has `key_pem` can let machines in."""

    name: str
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, name: str, now: float) -> ClusterAuthority:
        """A new cluster. Raises TrustError when `name` is empty or longer than 64 characters."""
        if not 0 < len(name) <= NAME_LIMIT:
            raise TrustError(f"A cluster's name has 1 to {NAME_LIMIT} characters.")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject(name), _subject(name), key.public_key(), key.public_key(), now, AUTHORITY_DAYS)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(name, certificate.public_bytes(Encoding.PEM), _dump_key(key))

    @classmethod
    def load(cls, pem: bytes) -> ClusterAuthority:
        """The inverse of `dump`. Raises TrustError when `pem` is not a matching key and certificate."""
        found = _PEM_CERTIFICATE.search(pem)
        if found is None:
            raise TrustError("The cluster authority's file holds no certificate.")
        certificate_pem, key_pem = found.group(), pem.replace(found.group(), b"")
        certificate, key = _parse_certificate(to_der(certificate_pem)), _load_key(key_pem)
        if _public_der(certificate.public_key()) != _public_der(key.public_key()):
            raise TrustError("The cluster authority's key and certificate do not belong together.")
        return cls(_common_name(certificate), certificate_pem, key_pem)

    def dump(self) -> bytes:
        """Certificate and key as one PEM text; a secret."""
        return self.certificate_pem + self.key_pem

    @property
    def cluster_id(self) -> str:
        return cluster_id_of(to_der(self.certificate_pem)).hex()

    def issue(self, csr_der: bytes, now: float, *, head: bool = False) -> bytes:
        """The certificate (DER, 180 days) for the one name that a request may ask for: its own key's node id.

        Nothing but the public key is taken over from the request. `head` marks it as the master's own.
        Raises TrustError for any other request.
        """
        public_key = _check_request(csr_der)
        authority = _parse_certificate(to_der(self.certificate_pem))
        key = _load_key(self.key_pem)
        node = node_id_of(_public_der(public_key))
        subject = _subject(node, _HEAD_MARK if head else "")
        builder = _builder(subject, authority.subject, public_key, key.public_key(), now, LEAF_DAYS)
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(_own_name(node), critical=False)
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.DER)

    def issue_api(self, names: Sequence[str], addresses: Sequence[str], now: float) -> tuple[bytes, bytes]:
        """(certificate, its new key), PEM, 30 days: an HTTPS server under these DNS names and IPs, and no node.

        It has no client usage and several names, so that no link takes it for a node's.
        """
        authority, key = _parse_certificate(to_der(self.certificate_pem)), _load_key(self.key_pem)
        own_key = ec.generate_private_key(ec.SECP256R1())
        ips = [x509.IPAddress(ip_address(address)) for address in addresses]
        builder = _builder(
            _subject(f"{self.name} API"[:NAME_LIMIT]),
            authority.subject,
            own_key.public_key(),
            key.public_key(),
            now,
            API_LEAF_DAYS,
        )
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([*(x509.DNSName(name) for name in names), *ips]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _dump_key(own_key)

    def enrol_head(self, name: str, key_pem: bytes, now: float) -> Credentials:
        """Credentials for the machine that holds this authority: it needs no code."""
        certificate = self.issue(make_request(key_pem), now, head=True)
        node = node_id_of_key(key_pem)
        return Credentials(node, name, self.name, node, key_pem, to_pem(certificate), self.certificate_pem)


def make_key() -> bytes:
    """A new private key, PKCS #8 in PEM."""
    return _dump_key(ec.generate_private_key(ec.SECP256R1()))


def encrypted_key(key_pem: bytes, password: bytes) -> bytes:
    """The key as PEM that only `password` opens."""
    return _load_key(key_pem).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))


def make_request(key_pem: bytes) -> bytes:
    """A certificate request (PKCS #10, DER) for the key's own node id."""
    key = _load_key(key_pem)
    node = node_id_of(_public_der(key.public_key()))
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(node))
    return builder.add_extension(_own_name(node), critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def node_id_of(public_key_der: bytes) -> NodeId:
    """The first 128 bits of SHA-256 of a SubjectPublicKeyInfo, as 32 hex digits."""
    return hashlib.sha256(public_key_der).hexdigest()[:32]


def node_id_of_key(key_pem: bytes) -> NodeId:
    return node_id_of(_public_der(_load_key(key_pem).public_key()))


def node_id_of_certificate(certificate_der: bytes) -> NodeId:
    """The node that a certificate names. Raises TrustError unless it names exactly one, and that is its key's."""
    certificate = _parse_certificate(certificate_der)
    names = _dns_names(certificate.extensions)
    if len(names) != 1 or names[0] != node_id_of(_public_der(certificate.public_key())):
        raise TrustError("The certificate does not name its own node.")
    return names[0]


def node_id_of_request(csr_der: bytes) -> NodeId:
    """The node that a request is for, its signature checked. Raises TrustError as `ClusterAuthority.issue`."""
    return node_id_of(_public_der(_check_request(csr_der)))


def is_heads(certificate_der: bytes) -> bool:
    """Whether the authority marked this certificate as the master's own; it marks no other."""
    units = _parse_certificate(certificate_der).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return [unit.value for unit in units] == [_HEAD_MARK]


def check_issued(certificate_der: bytes, ca_der: bytes, node: NodeId) -> None:
    """Raises TrustError unless `ca_der` signed this certificate for `node`."""
    certificate, authority = _parse_certificate(certificate_der), _parse_certificate(ca_der)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TrustError("The certificate does not come from the cluster's authority.") from error
    if node_id_of_certificate(certificate_der) != node:
        raise TrustError("The certificate is for another node.")


def cluster_id_of(ca_der: bytes) -> bytes:
    """SHA-256 (32 bytes) of the authority's certificate."""
    return hashlib.sha256(ca_der).digest()


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


def to_pem(certificate_der: bytes) -> bytes:
    return _parse_certificate(certificate_der).public_bytes(Encoding.PEM)


def to_der(certificate_pem: bytes) -> bytes:
    """Raises TrustError when this is no certificate."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
    except ValueError as error:
        raise TrustError("This is not a certificate.") from error


def _parse_certificate(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.public_key(), certificate.extensions, certificate.subject  # else they are read, and fail, later
        return certificate
    except _UNREADABLE as error:
        raise TrustError("This is not a certificate.") from error


def _check_request(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_der) > CSR_LIMIT_BYTES:
        raise TrustError("The certificate request is too long.")
    try:
        request = x509.load_der_x509_csr(csr_der)
        key, extensions, signed = request.public_key(), request.extensions, request.is_signature_valid
    except _UNREADABLE as error:
        raise TrustError("This is not a certificate request.") from error
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("The certificate request is not signed with a P-256 key.")
    if len(extensions) != 1 or _dns_names(extensions) != [node_id_of(_public_der(key))]:
        raise TrustError("A certificate request may ask for the node's own id and nothing else.")
    return key


def _dns_names(extensions: x509.Extensions) -> list[str]:
    """The DNS names; empty when there is any other kind of name beside them."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    dns_names = names.get_values_for_type(x509.DNSName)
    return dns_names if len(dns_names) == len(list(names)) else []


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: float,
    days: int,
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(seconds=BACKDATE_S))
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str, unit: str = "") -> x509.Name:
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), *units])


def _own_name(node: NodeId) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(node)])


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _public_der(key: object) -> bytes:
    return cast(ec.EllipticCurvePublicKey, key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise TrustError("This is not a private key.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError("This is not a P-256 private key.")
    return key
