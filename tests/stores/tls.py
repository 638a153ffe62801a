"""TLS in front of the tests' PostgreSQL, which is built without it, as a pooler would have it; and certificates."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ASKS_FOR_TLS, _ASKS_FOR_GSS = 80877103, 80877104  # instead of a version, in a client's first message
_DAY = datetime.timedelta(days=1)


def authority(folder: Path, name: str) -> tuple[Path, Path]:
    """Make an authority, and what it has issued for "localhost": its own certificate, and a server's with the key."""
    own, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, leaf = _certificate(name, own, name, own), _certificate("localhost", key, name, own)
    trusted, served = folder / f"{name}.crt", folder / f"{name}.pem"
    trusted.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    served.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return trusted, served


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    named, issued = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
    return (
        x509.CertificateBuilder(issued, named, key.public_key(), x509.random_serial_number(), now - _DAY, now + _DAY)
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(by, hashes.SHA256())
    )


@contextmanager
def front(server: str, certificate: Path | None) -> Iterator[tuple[int, list[str]]]:
    """Listen on a port of this machine for clients of a server behind a socket in the file system.

    Args:
        server: the path of its socket.
        certificate: with its key; None: refuse to speak TLS.

    Yields:
        The port, and the versions of TLS that clients have spoken, as they come.
    """
    context, versions = None, list[str]()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):  # it has been closed
                while True:
                    arguments = (listening.accept()[0], server, context, versions)
                    threading.Thread(target=_serve, args=arguments, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], versions
        listening.shutdown(socket.SHUT_RDWR)


def _serve(client: socket.socket, server: str, context: ssl.SSLContext | None, versions: list[str]) -> None:
    with suppress(OSError), client:
        while (asked := struct.unpack(">ii", client.recv(8, socket.MSG_WAITALL))[1]) == _ASKS_FOR_GSS:
            client.sendall(b"N")
        if asked != _ASKS_FOR_TLS or context is None:
            client.sendall(b"N")  # who insists on TLS leaves now
            return
        client.sendall(b"S")
        with (
            context.wrap_socket(client, server_side=True) as secure,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as behind,
        ):
            versions.append(str(secure.version()))
            behind.connect(server)
            threading.Thread(target=_carry, args=(behind, secure), daemon=True).start()
            _carry(secure, behind)


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
