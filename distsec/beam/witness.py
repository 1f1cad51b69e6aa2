"""Shows a distribution port a certificate that it is to refuse, and sees whether it does.

A TLS 1.3 client with a key and a certificate, and nothing after the handshake: whoever admits it waits for
the first frame of the distribution, and is left waiting. Why it was refused is the node's to tell (its report
names our address); on the wire every refusal of a chain may look alike. The key touches no disk.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from distsec.model.text import escape
from distsec.pki.pairs import Pair

_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Witnessed:
    """`refused`: None where nobody could be asked. `said`: one line. `local_address`: our end, as the node
    sees it.
    """

    refused: bool | None
    said: str
    local_address: str | None = None


async def show_certificate(
    address: str,
    port: int,
    pair: Pair,
    timeout: float,  # noqa: ASYNC109  of a connection that the other end may hold
    *,
    opened: Callable[[str], object],
) -> Witnessed:
    """Connects to `address` and `port` as whoever has `pair`. `opened` hears our end of the connection before
    the node has seen the certificate. Raises nothing that the other end does.
    """
    loop = asyncio.get_running_loop()
    context = _context(pair)
    ours: str | None = None
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    writer: asyncio.StreamWriter | None = None
    greeted = False
    try:
        async with asyncio.timeout(timeout):
            await loop.sock_connect(connection, (address, port))
            host, number = connection.getsockname()[:2]
            ours = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
            opened(ours)
            reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname="")
            greeted = True  # in TLS 1.3 the client is done first: what the server thinks of it comes now
            data = await reader.read(_READ_BYTES)
        return Witnessed(not data, "it answered" if data else "it closed the connection", ours)
    except TimeoutError:
        return Witnessed(False if greeted else None, "it did not refuse it in time", ours)
    except ssl.SSLError as error:
        said = str(error.reason or error.args[-1]).lower().replace("_", " ")
        return Witnessed(True, escape(said, 200), ours)
    except ConnectionResetError:
        return Witnessed(True if ours else None, "it reset the connection", ours)
    except OSError as error:
        return Witnessed(None, os.strerror(error.errno) if error.errno else "cannot be reached", ours)
    finally:
        if writer is not None:
            writer.transport.abort()
        connection.close()


def _context(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who serves the port was proven already
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    descriptor = os.memfd_create("distsec-witness", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.key.reveal() + pair.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
