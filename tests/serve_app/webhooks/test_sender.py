"""Which addresses are the public internet's, and that the one that was judged is the one that is dialled."""

import asyncio
import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve_app.config.webhooks import WebhookSettings
from serve_app.webhooks.sender import Sender, is_public
from serve_app.webhooks.target import Target
from tests.serve_app.webhooks.receiver import Receiver, receiving

PRIVATE = (
    "127.0.0.1", "127.8.8.8", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::", "2002:c0a8:101::", "2001::1", "2001:0:4136:e378::1",
    "2001:db8::1", "100::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff05::2",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_the_public_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8"]
)
def test_what_is(address: str) -> None:
    assert is_public(address)


class Names:
    """The system's resolver, which gives a name another address each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[str] = []
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            if host != "hooks.example.com":
                return real(host, port, *arguments, **options)
            self.asked.append(host)
            if not self.addresses:
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            address = self.addresses.pop(0)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def sender(**fields: Any) -> Sender:
    return Sender(WebhookSettings.model_validate({"timeout_s": 5.0, **fields}))


async def test_a_private_address_is_not_connected_to(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(receiver.host.partition(":")[2])
    for host in ("127.0.0.1", "localhost", "hooks.example.com"):
        Names(monkeypatch, "127.0.0.1")
        answer = await sender().post(Target("http", host, port, "/"), {}, b"{}")
        assert answer.status is None
        assert answer.failure.startswith("AddressRefused")
    assert receiver.calls == []


async def test_a_name_is_asked_for_once_so_that_it_cannot_change_its_answer(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is judged: what comes second is never seen."""
    port = int(receiver.host.partition(":")[2])
    dialled: list[Any] = []
    connect = asyncio.get_running_loop().sock_connect
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", lambda *a: (dialled.append(a[1]), connect(*a))[1])
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2")
    answer = await sender(allow_private_addresses=True).post(Target("http", "hooks.example.com", port, "/"), {}, b"{}")
    assert answer.taken
    assert len(names.asked) == 1
    assert {address[0] for address in dialled} <= {"127.0.0.1"}
    assert receiver.calls[0].headers["host"] == f"hooks.example.com:{port}"


async def test_the_next_address_is_dialled_where_one_takes_no_connection(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(receiver.host.partition(":")[2])

    async def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    private = sender(allow_private_addresses=True)
    assert (await private.post(Target("http", "hooks.example.com", port, "/"), {}, b"{}")).taken
    assert len(receiver.calls) == 1


async def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch)
    answer = await sender().post(Target("https", "hooks.example.com", 443, "/"), {}, b"{}")
    assert (answer.status, "resolved" in answer.failure) == (None, True)


async def test_no_proxy_of_the_environment_is_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    port = int(receiver.host.partition(":")[2])
    private = sender(allow_private_addresses=True)
    assert (await private.post(Target("http", "127.0.0.1", port, "/"), {}, b"{}")).taken


UNENDING = (b"", b"HTTP/1.1 200 OK\r\nX: ...", b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000)


async def test_an_answer_is_waited_for_so_long_and_read_so_far(receiver: Receiver) -> None:
    port = int(receiver.host.partition(":")[2])
    receiver.answers = list(UNENDING)
    short = sender(allow_private_addresses=True, timeout_s=1.0)  # in which a busy machine sends the request
    for _ in UNENDING:
        async with asyncio.timeout(10):
            answer = await short.post(Target("http", "127.0.0.1", port, "/"), {}, b"{}")
        assert (answer.status, bool(answer.failure)) == (None, True)
    assert len(receiver.calls) == len(UNENDING)


async def test_the_end_of_an_answer_is_not_waited_for(receiver: Receiver) -> None:
    port = int(receiver.host.partition(":")[2])
    receiver.answers = [b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n..."]
    async with asyncio.timeout(4):  # of the call's own five
        assert (await sender(allow_private_addresses=True).post(Target("http", "127.0.0.1", port, "/"), {}, b"")).taken


def certificate(folder: Path, host: str) -> ssl.SSLContext:
    """A server's, signed by itself; its authority is in folder/ca.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "server.pem").write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


async def test_a_certificate_has_to_be_the_name_s_though_the_address_is_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(certificate(tmp_path, "hooks.example.com")) as one:
        port = int(one.host.partition(":")[2])
        Names(monkeypatch, *["127.0.0.1"] * 2)
        trusting = sender(allow_private_addresses=True, ca_file=tmp_path / "ca.pem")
        assert (await trusting.post(Target("https", "hooks.example.com", port, "/"), {}, b"{}")).taken
        for wrong, host in ((trusting, "127.0.0.1"), (sender(allow_private_addresses=True), "hooks.example.com")):
            answer = await wrong.post(Target("https", host, port, "/"), {}, b"{}")
            assert "certificate verify failed" in answer.failure.lower(), answer.failure
    assert len(one.calls) == 1
