"""One handshake of the distribution, as far as the victim goes along: what single tests are made of.

The frames are the catalogue's (catalogue.dialogue); attacks that are tried again and again are there too.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.dialogue import HIDDEN, VISIBLE, Wire
from tests.system.certificates import Leaf
from tests.system.intruder import tls

__all__ = ["HIDDEN", "VISIBLE", "Claim", "claim", "false_node"]


@dataclass(frozen=True, slots=True)
class Claim:
    """How far it got: the status (`ok`, `alive`, …; "" none came), and whether the cookie was taken."""

    connection: ssl.SSLSocket
    address: str
    status: str
    admitted: bool


def claim(
    port: int,
    leaf: Leaf,
    name: str,
    cookie: str,
    *,
    flags: int = HIDDEN,
    before_reply: Callable[[], object] = lambda: None,
    seconds: float = 30.0,
) -> Claim:
    """Dials as `name`. The connection stays open; where `admitted` it is a link.

    `before_reply` is called once the name was taken, and before the cookie is shown. `seconds`: how long the
    victim may be silent.
    """
    connection = tls(port, leaf, seconds=seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms for each small frame
    wire = Wire(connection, dialogue.text_of(connection.getsockname()))
    status, admitted = "", False
    try:
        wire.send(dialogue.name_frame(name.encode(), flags))
        status = wire.receive()[1:].decode()  # $s
        if status in {"ok", "ok_simultaneous"}:
            challenge = dialogue.read_challenge(wire.receive())
            before_reply()
            wire.send(dialogue.reply_frame(cookie, challenge.number))
            admitted = wire.receive()[:1] == b"a"
    except OSError:  # ended by the other side; ssl.SSLError is one
        pass
    return Claim(connection, wire.address, status, admitted)


@contextmanager
def false_node(port: int, leaf: Leaf, name: str) -> Iterator[None]:
    """Listens as `name` for whoever dials it, takes any cookie, and makes up its own answer to theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate, leaf.key)
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                accepted.settimeout(30)
                with accepted:
                    try:
                        with context.wrap_socket(accepted, server_side=True) as connection:
                            wire = Wire(connection, "")
                            dialogue.accept_handshake(wire, name, None)
                            wire.receive()  # the end of it
                    except OSError:
                        pass

        thread = Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            assert not thread.is_alive()
