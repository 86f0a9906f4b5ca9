"""Certificate requests as a hostile machine would send them: other keys, other names, more rights, broken DER."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import AttributeOID, ExtensionOID, NameOID, ObjectIdentifier

from fuzz.mutation import spoil
from transport.identity import make_key, make_request, node_id_of

SHA256: Final = hashes.SHA256()
OIDS: Final = (
    b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
    b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01",
    b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
)
"""P-256, id-ecPublicKey and ecdsa-with-SHA256, as they stand in every honest request."""
OTHER_OIDS: Final = (
    b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x01",
    b"\x06\x05\x2b\x81\x04\x00\x0a",
    b"\x06\x05\x2b\x81\x04\x00\x22",
    b"\x06\x09\x2b\x24\x03\x03\x02\x08\x01\x01\x07",
    b"\x06\x03\x2b\x65\x70",
    b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01",
    b"\x06\x08\x2a\x86\x48\x86\xf7\x0d\x02\x05",
    b"\x06\x01\x00",
    b"\x06\x03\x2a\x03\x04",
)


@cache
def pool() -> Sequence[bytes]:
    """Well formed, and each of them but the first two more or less than a request may be."""
    key: Any = load_pem_private_key(make_key(), None)
    name = node_id_of(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    others: list[x509.ExtensionType] = [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("0123456789abcdef" * 2)]),
        x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")]),
        x509.SubjectAlternativeName([x509.DNSName(name), x509.UniformResourceIdentifier("a:b")]),
        x509.SubjectAlternativeName([x509.RFC822Name(name)]),
        x509.SubjectAlternativeName([x509.OtherName(ObjectIdentifier("1.2.3"), b"\x04\x00")]),
        x509.SubjectAlternativeName([]),
        x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), b"\x30\x80\xff\xff"),
        x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"x" * 200),
        x509.KeyUsage(True, False, False, False, False, True, True, False, False),
    ]
    built = [make_request(make_key()), _signed(key, [names]), _signed(key, [names], unit="head"), _signed(key, [])]
    built += [_signed(key, [other]) for other in others] + [
        _signed(key, [names, other]) for other in others[:1] + others[-2:]
    ]
    strangers: list[Any] = [ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())]
    strangers += [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()]
    built += [_signed(stranger, [names]) for stranger in strangers]
    built.append(
        _builder([names])
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"x" * 64)
        .sign(key, SHA256)
        .public_bytes(Encoding.DER)
    )
    return built


def _builder(extensions: Sequence[x509.ExtensionType], unit: str = "") -> x509.CertificateSigningRequestBuilder:
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x"), *units])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder


def _signed(key: Any, extensions: Sequence[x509.ExtensionType], unit: str = "") -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256
    return _builder(extensions, unit).sign(key, algorithm).public_bytes(Encoding.DER)


def hostile_request(rng: random.Random) -> bytes:
    """One of the pool as it is, or spoiled; or garbage; or far too long."""
    request = rng.choice(pool())
    return spoiled_der(request, rng) if rng.random() < 0.7 else request


def spoiled_der(der: bytes, rng: random.Random) -> bytes:
    changes: Sequence[Callable[[], bytes]] = (
        lambda: spoil(der, rng),
        lambda: spoil(der, rng),
        lambda: der.replace(rng.choice(OIDS), rng.choice(OTHER_OIDS)),
        lambda: der.replace(rng.choice(OIDS), rng.choice(OTHER_OIDS), 1),
        lambda: rng.randbytes(rng.randrange(80)),
        lambda: der + b"\0" * rng.choice((1, 5000)),
        lambda: _grown(der, rng),
    )
    return rng.choice(changes)()


def _grown(der: bytes, rng: random.Random) -> bytes:
    """A tag or length octet somewhere becomes another: what BER allows and DER does not."""
    at = rng.randrange(len(der))
    return (
        der[:at]
        + bytes([rng.choice((0x80, 0x81, 0x84, 0x88, 0x30, 0x31, 0x1F, 0x9F, 0x00, 0xFF, 0x7F))])
        + der[at + 1 :]
    )


def is_honest(csr_der: bytes) -> str | None:
    """The node id of a request that deserves a certificate, by another road than the program's; else None."""
    try:
        request = x509.load_der_x509_csr(csr_der)
        key, extensions = request.public_key(), list(request.extensions)
        if (
            not request.is_signature_valid
            or not isinstance(key, ec.EllipticCurvePublicKey)
            or key.curve.name != "secp256r1"
        ):
            return None
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    node = node_id_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    alone = len(extensions) == 1 and extensions[0].oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    return node if alone and list(extensions[0].value) == [x509.DNSName(node)] else None
