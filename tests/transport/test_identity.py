from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport import identity
from transport.errors import TrustError
from transport.identity import ClusterAuthority

NOW = 1_800_000_000.0
DAY_S = 86400


@pytest.fixture(scope="module")
def authority() -> ClusterAuthority:
    return ClusterAuthority.create("home", NOW)


def request_with(*extensions: x509.ExtensionType, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_leaf_names_its_node_lives_180_days_and_cannot_sign(authority: ClusterAuthority) -> None:
    key = identity.make_key()
    der = authority.issue(identity.make_request(key), NOW)
    node = identity.node_id_of_key(key)
    certificate = x509.load_der_x509_certificate(der)
    assert identity.is_node_id(node)
    assert identity.node_id_of_certificate(der) == node
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + 180 * DAY_S, UTC)
    assert certificate.not_valid_before_utc == datetime.fromtimestamp(NOW - 45 * 60, UTC)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    identity.check_issued(der, identity.to_der(authority.certificate_pem), node)


def test_the_node_id_follows_from_the_key_alone() -> None:
    key = identity.make_key()
    assert identity.node_id_of_key(key) == identity.node_id_of_key(key)
    assert identity.node_id_of_key(key) != identity.node_id_of_key(identity.make_key())


def test_dump_and_load_give_the_same_authority(authority: ClusterAuthority) -> None:
    assert ClusterAuthority.load(authority.dump()) == authority
    assert len(authority.cluster_id) == 64


@pytest.mark.parametrize("pem", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_broken_authority_file_is_a_named_error(pem: bytes) -> None:
    with pytest.raises(TrustError):
        ClusterAuthority.load(pem)


def test_key_and_certificate_of_two_authorities_do_not_load(authority: ClusterAuthority) -> None:
    other = ClusterAuthority.create("other", NOW)
    with pytest.raises(TrustError, match="belong together"):
        ClusterAuthority.load(authority.certificate_pem + other.key_pem)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_cluster_needs_a_name_of_bearable_length(name: str) -> None:
    with pytest.raises(TrustError):
        ClusterAuthority.create(name, NOW)


def test_a_request_for_another_name_is_refused(authority: ClusterAuthority) -> None:
    other = identity.node_id_of_key(identity.make_key())
    with pytest.raises(TrustError, match="own id"):
        authority.issue(request_with(x509.SubjectAlternativeName([x509.DNSName(other)])), NOW)


def test_a_request_for_a_second_name_is_refused(authority: ClusterAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    names = [x509.DNSName(identity.node_id_of_key(pem)), x509.RFC822Name("someone@example.org")]
    with pytest.raises(TrustError, match="own id"):
        authority.issue(request_with(x509.SubjectAlternativeName(names), key=key), NOW)


def test_a_request_for_authority_is_refused(authority: ClusterAuthority) -> None:
    key = identity.make_key()
    private = load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    own = x509.SubjectAlternativeName([x509.DNSName(identity.node_id_of_key(key))])
    with pytest.raises(TrustError, match="nothing else"):
        authority.issue(request_with(own, x509.BasicConstraints(ca=True, path_length=None), key=private), NOW)


def test_a_request_with_another_kind_of_key_is_refused(authority: ClusterAuthority) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    csr = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)
    with pytest.raises(TrustError, match="P-256"):
        authority.issue(csr, NOW)


def test_a_request_whose_signature_was_changed_is_refused(authority: ClusterAuthority) -> None:
    csr = bytearray(identity.make_request(identity.make_key()))
    csr[-1] ^= 1
    with pytest.raises(TrustError):
        authority.issue(bytes(csr), NOW)


@pytest.mark.parametrize("csr", [b"", b"\x30\x03abc", b"x" * 5000])
def test_garbage_for_a_request_is_refused(authority: ClusterAuthority, csr: bytes) -> None:
    with pytest.raises(TrustError):
        authority.issue(csr, NOW)


def test_another_clusters_certificate_is_not_ours(authority: ClusterAuthority) -> None:
    key = identity.make_key()
    foreign = ClusterAuthority.create("home", NOW).issue(identity.make_request(key), NOW)
    with pytest.raises(TrustError):
        identity.check_issued(foreign, identity.to_der(authority.certificate_pem), identity.node_id_of_key(key))


def test_head_credentials_renew_from_day_30_and_hide_the_key(authority: ClusterAuthority) -> None:
    credentials = authority.enrol_head("tower", identity.make_key(), NOW)
    assert credentials.head == credentials.node_id
    assert credentials.cluster_id == authority.cluster_id
    assert not credentials.renewable(NOW + 29 * DAY_S)
    assert credentials.renewable(NOW + 30 * DAY_S)
    assert "PRIVATE" not in repr(credentials) + repr(authority)


def test_an_api_certificate_is_for_its_names_and_for_no_node(authority: ClusterAuthority) -> None:
    node = "0" * 32
    pem, key_pem = authority.issue_api([node, "attic.local"], ["192.168.1.7", "::1"], NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [node, "attic.local"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.7", "::1"]
    assert (certificate.not_valid_after_utc - datetime.fromtimestamp(NOW, UTC)).days == identity.API_LEAF_DAYS
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == [ExtendedKeyUsageOID.SERVER_AUTH], "no link takes it from a dialler"
    with pytest.raises(TrustError, match="does not name its own node"):
        identity.node_id_of_certificate(identity.to_der(pem))
    assert not identity.is_heads(identity.to_der(pem))
    assert identity.node_id_of_key(key_pem) != node
    assert load_pem_private_key(key_pem, None).public_key() == certificate.public_key()


def test_only_the_heads_certificate_carries_the_mark(authority: ClusterAuthority) -> None:
    key = identity.make_key()
    head = authority.enrol_head("tower", key, NOW)
    assert identity.is_heads(head.certificate_der)
    assert not identity.is_heads(authority.issue(identity.make_request(key), NOW))
    assert not identity.is_heads(identity.to_der(authority.certificate_pem))


def test_a_request_cannot_ask_for_the_mark(authority: ClusterAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    node = identity.node_id_of_key(pem)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "head")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    assert identity.node_id_of_request(csr) == node
    assert not identity.is_heads(authority.issue(csr, NOW))


def test_a_certificate_is_over_after_its_180_days(authority: ClusterAuthority) -> None:
    own = authority.enrol_head("tower", identity.make_key(), NOW)
    assert not own.expired(NOW + 180 * DAY_S)
    assert own.expired(NOW + 180 * DAY_S + 1)
