"""Two connected sockets on loopback under real TLS 1.3, with a certificate made on the spot."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAME: Final = "node.test"


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server, client); the client verifies the server's name and certificate."""
    certificate, key = _self_signed()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.minimum_version = client.minimum_version = ssl.TLSVersion.TLSv1_3
    with TemporaryDirectory() as folder:
        path = Path(folder) / "node.pem"
        path.write_bytes(key + certificate)
        server.load_cert_chain(path)
    client.load_verify_locations(cadata=certificate.decode())
    return server, client


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """(dialled, accepted), plain."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname(), timeout=5)
        accepted, _ = listener.accept()
    return dialled, accepted


def tls_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """(client, server), handshake done."""
    server_context, client_context = contexts()
    dialled, accepted = tcp_pair()
    served: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: served.append(_wrapped(server_context, accepted)))
    thread.start()
    client = _wrapped(client_context, dialled, NAME)
    thread.join(5)
    return client, served[0]


def _wrapped(context: ssl.SSLContext, sock: socket.socket, server_hostname: str | None = None) -> ssl.SSLSocket:
    """As the program does it: a connection that is cut is told from one that is closed."""
    return context.wrap_socket(
        sock,
        server_side=server_hostname is None,
        server_hostname=server_hostname,
        suppress_ragged_eofs=False,
    )


def _self_signed() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
