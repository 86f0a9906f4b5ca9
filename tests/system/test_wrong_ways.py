"""Every wrong way into a cluster (DESIGN 5), against a real head: one clear line, exit code 4, and nobody got in.

The same ways, message by message and with clocks of their own, are in tests/transport: `test_pairing` (codes, tries,
group elements), `test_joining` (codes over sockets, stalls, garbage), `test_issuing` and `test_requesting` (tokens, to
whom the secret is said, renewals, clocks), `test_identity` (requests), `test_endpoint` (certificates, eight
handshakes at once and the ninth) and `test_framing` (lengths). Garbage without end is in `test_hostile`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.helpers.cluster import make_credentials
from tests.helpers.tls_relay import tls_relay
from transport import identity, pairing, tls
from transport.identity import ClusterAuthority
from transport.joining import pair
from transport.pairing import JoinerHandshake
from transport.requesting import redeem
from transport.tokens import Token, parse_token
from transport.types import Address
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder

FREE_PORTS = ("--port", "0", "--node-port", "0")
REFUSED_CODE = "error: The master did not accept the pairing code: it is wrong, used, or older than ten minutes."
REFUSED_TOKEN = "error: The master did not accept the token: it is wrong, used or has ended."
SHIFTED = """
import sys, time
real, shift_s = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + shift_s
from vramancer_cli.__main__ import main
sys.exit(main())
"""
"""The program on a machine whose clock is wrong."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("alone")) as cluster:
        cluster.start_head()
        yield cluster
        assert "Traceback" not in cluster.head.output
        assert [node.name for node in cluster.client.status().nodes] == ["head"], "nobody got in"


def where(cluster: LocalCluster) -> Address:
    return Address("127.0.0.1", cluster.head.node_port)


def refusal(folder: Path, place: Address, *arguments: str, clock_s: float = 0.0, **more: str) -> str:
    """The one error line of a `join` that ends with 4, and leaves nothing behind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VRM_")}
    program = ["-c", SHIFTED, str(clock_s)] if clock_s else ["-m", "vramancer_cli"]
    command = [sys.executable, *program, "join", str(place), *arguments, *FREE_PORTS, "--state-dir", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, env=kept | more, stdin=subprocess.DEVNULL)
    assert "Traceback" not in ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert ran.returncode == 4, line
    assert not (folder / "credentials.json").exists()
    return line


def wrong(code: str) -> str:
    return "-".join((*code.split("-")[:3], "zebra" if not code.endswith("zebra") else "zipper"))


# --- codes ----------------------------------------------------------------------------------------------------------


def test_a_wrong_a_used_and_an_unknown_code_get_the_same_line(alone: LocalCluster, tmp_path: Path) -> None:
    code, used = alone.client.invite()[0], alone.client.invite()[0]
    asyncio.run(pair([where(alone)], used, name="x", key_pem=identity.make_key()))
    unknown = "98" + code[code.index("-") :]
    lines = {refusal(tmp_path, where(alone), "--code", guess) for guess in (wrong(code), used, unknown)}
    (line,) = lines
    assert line.startswith(REFUSED_CODE)
    assert "vramancer invite" in line


def test_the_sixth_try_is_refused_although_it_is_right(alone: LocalCluster, tmp_path: Path) -> None:
    code = alone.client.invite()[0]
    for guess in [wrong(code)] * 5 + [code]:
        assert refusal(tmp_path, where(alone), "--code", guess).startswith(REFUSED_CODE)


def test_a_mistyped_word_is_told_without_a_try(alone: LocalCluster, tmp_path: Path) -> None:
    code = alone.client.invite()[0]
    for _ in range(6):
        assert "is not a word of a pairing code" in refusal(tmp_path, where(alone), "--code", code + "x")
    asyncio.run(pair([where(alone)], code, name="x", key_pem=identity.make_key()))


def test_a_relay_that_forwards_every_message_gets_nobody_in(alone: LocalCluster, tmp_path: Path) -> None:
    code, token = alone.client.invite()[0], alone.client.make_token(reusable=False, hours=1)["token"]

    async def between() -> tuple[str, str]:
        async with tls_relay(where(alone)) as place:
            by_code = await asyncio.to_thread(refusal, tmp_path, place, "--code", code)
            return by_code, await asyncio.to_thread(refusal, tmp_path, place, VRM_JOIN_TOKEN=token)

    by_code, by_token = asyncio.run(between())
    assert "another machine may be sitting between the two" in by_code
    assert "is not node" in by_token or "is not the machine looked for" in by_token
    asyncio.run(pair([where(alone)], code, name="x", key_pem=identity.make_key()))


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_wrong_a_used_and_an_ended_token_get_the_same_line(alone: LocalCluster, tmp_path: Path) -> None:
    right = parse_token(alone.client.make_token(reusable=False, hours=1)["token"])
    ended = alone.client.make_token(reusable=False, hours=1 / 3_600_000)["token"]
    asyncio.run(redeem([where(alone)], right, name="x", key_pem=identity.make_key()))
    guessed = Token(right.authority_digest, bytes(16))
    lines = {refusal(tmp_path, where(alone), VRM_JOIN_TOKEN=str(token)) for token in (guessed, right, ended)}
    (line,) = lines
    assert line.startswith(REFUSED_TOKEN)


def test_a_token_with_one_mistyped_character_is_told_on_the_spot(alone: LocalCluster, tmp_path: Path) -> None:
    token = alone.client.make_token(reusable=False, hours=1)["token"]
    typo = token[:70] + ("a" if token[70] != "a" else "b") + token[71:]
    assert "has a typing error" in refusal(tmp_path, where(alone), VRM_JOIN_TOKEN=typo)


def test_another_clusters_token_is_not_even_shown(alone: LocalCluster, tmp_path: Path) -> None:
    other = Registrar(StateFolder(tmp_path / "other"), ClusterAuthority.create("other", time.time()))
    line = refusal(tmp_path, where(alone), VRM_JOIN_TOKEN=other.invite(reusable=True, hours=1)[0])
    assert "is of another cluster" in line and "not shown" in line


# --- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock_s", [-7200.0, 7200.0])
def test_clocks_two_hours_apart_are_both_named(alone: LocalCluster, tmp_path: Path, clock_s: float) -> None:
    code, token = alone.client.invite()[0], alone.client.make_token(reusable=False, hours=1)["token"]
    for line in (
        refusal(tmp_path, where(alone), "--code", code, clock_s=clock_s),
        refusal(tmp_path, where(alone), clock_s=clock_s, VRM_JOIN_TOKEN=token),
    ):
        assert line.count(" UTC") == 2
        assert "more than 45 minutes apart" in line
    asyncio.run(pair([where(alone)], code, name="x", key_pem=identity.make_key()))  # it cost no try


# --- strangers with programs of their own ---------------------------------------------------------------------------


class Stranger(JoinerHandshake):
    """A joiner that says what it likes. `talk` gives the master's last answer, b"" where it hung up."""

    def __init__(self, code: str, cluster: LocalCluster, csr: Callable[[bytes], bytes] = identity.make_request) -> None:
        context = tls.joining_context()
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", cluster.head.node_port), 5))
        leaf = sock.getpeercert(binary_form=True)
        assert leaf is not None
        key = identity.make_key()
        super().__init__(code, key, leaf)
        self._csr = csr(key)
        self.sock = sock

    def hear(self) -> bytes:
        got = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while len(got) < 4 or len(got) < 4 + pairing.frame_length(got[:4]):
                more = self.sock.recv(4096)
                if not more:
                    return b""
                got += more
        return got[4:]

    def say(self, message: bytes) -> bytes:
        self.sock.sendall(pairing.frame(message))
        return self.hear()


ELEMENTS = {
    "32 bytes": b"A" + bytes(31),
    "34 bytes": b"A" + bytes(33),
    "off the curve": b"A\x02" + bytes(31),
    "of small order": b"A\x01" + bytes(31),
    "of the other side": b"B" + bytes(32),
}


def test_every_false_group_element_gets_the_same_silence(alone: LocalCluster) -> None:
    code = alone.client.invite()[0]
    for element in ELEMENTS.values():
        stranger = Stranger(code, alone)
        request = msgspec.msgpack.decode(stranger.request(stranger.hear())) | {"pake": element}
        assert stranger.say(msgspec.msgpack.encode(request)) == b""
    asyncio.run(pair([where(alone)], code, name="x", key_pem=identity.make_key()))


def asking(*extensions: x509.ExtensionType) -> Callable[[bytes], bytes]:
    def csr(key_pem: bytes) -> bytes:
        key = load_pem_private_key(key_pem, None)
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        own = x509.SubjectAlternativeName([x509.DNSName(identity.node_id_of_key(key_pem))])
        if not any(isinstance(extension, x509.SubjectAlternativeName) for extension in extensions):
            builder = builder.add_extension(own, critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)  # pyright: ignore[reportArgumentType]

    return csr


REQUESTS = {
    "to be an authority": asking(x509.BasicConstraints(ca=True, path_length=None)),
    "another node's name": asking(x509.SubjectAlternativeName([x509.DNSName("f" * 32)])),
    "the head's name too": asking(x509.SubjectAlternativeName([x509.DNSName("a" * 32), x509.DNSName("localhost")])),
}


@pytest.mark.parametrize("csr", REQUESTS.values(), ids=REQUESTS)
def test_a_right_code_does_not_buy_more_than_ones_own_name(alone: LocalCluster, csr: Callable[[bytes], bytes]) -> None:
    stranger = Stranger(alone.client.invite()[0], alone, csr)
    answer = stranger.say(stranger.request(stranger.hear()))
    assert stranger.say(stranger.confirm(answer)) == b""


@pytest.mark.parametrize("protocols", [["vrm-join/2"], ["h2", "http/1.1"], []])
def test_an_unknown_protocol_inside_tls_is_cut(alone: LocalCluster, protocols: list[str]) -> None:
    context = tls.joining_context()
    if protocols:
        context.set_alpn_protocols(protocols)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", alone.head.node_port), 5)) as sock:
        assert sock.selected_alpn_protocol() is None
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert sock.recv(100) == b""


def test_the_certificate_of_another_cluster_is_told_that_it_is_not_accepted(alone: LocalCluster) -> None:
    authority = ClusterAuthority.create("head", time.time())
    stranger = tls.make_contexts(make_credentials(authority, "stranger"), accepts_pairing=False).control_client
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with stranger.wrap_socket(socket.create_connection(("127.0.0.1", alone.head.node_port), 5)) as sock:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            sock.recv(100)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"])
def test_a_browser_at_the_node_port_reads_a_sentence(alone: LocalCluster, method: str) -> None:
    with socket.create_connection(("127.0.0.1", alone.head.node_port), 5) as sock:
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode() + bytes(5000))
        got = b""
        while more := sock.recv(65536):
            got += more
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"The page and the API are at another port: 5000" in body


def test_lengths_over_the_limit_cost_no_memory(alone: LocalCluster) -> None:
    """Announced on the join port as on the issue port, in the frame and in the message within."""

    def attack(context: ssl.SSLContext, length: bytes) -> None:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", alone.head.node_port), 5)) as sock:
            sock.recv(4096)
            with contextlib.suppress(OSError):
                sock.sendall(length)
                for _ in range(16):
                    sock.sendall(bytes(65536))
                while sock.recv(4096):
                    pass

    def bytes_after_a_round() -> int:
        for context in (tls.joining_context(), tls.issuing_context()):
            for length in (
                b"\xff\xff\xff\xff",
                (16 * 1024 + 1).to_bytes(4, "big"),
                b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
            ):
                for _ in range(10):
                    attack(context, length)
        return int(psutil.Process(alone.head.process.pid).memory_full_info().uss)

    bytes_after_a_round()  # the first rounds pay for what comes once: threads, caches of the certificates
    bytes_after_a_round()
    before = bytes_after_a_round()
    assert bytes_after_a_round() - before < 1 << 20
