"""The flags that put the guard into a node's VM, whatever command starts it: ERL_AFLAGS (pure)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final, NotRequired, TypedDict, Unpack

from distsec.beam.erlang_text import Symbol, Term, erlang_term
from distsec.beam.render import OPTFILE, checked_port, interface_term, proto_dist, refused, text_path
from distsec.model.cluster import Carrier, Epmd
from distsec.model.names import NodeName

_MAX_ENVIRONMENT_BYTES = 131_072 - len("ERL_AFLAGS=\0")
"""execve takes 32 pages a string (MAX_ARG_STRLEN in linux/binfmts.h), name and final NUL included."""

_BUFFERS: Final[Term] = [(Symbol("nodelay"), True), (Symbol("buffer"), 262_144)]
"""Of each distribution socket. 256 KB is the best of 16 KB to 4 MB; by default it is 1,460 bytes, with which
64 KB messages go at 1/25 of the speed on OTP 25, 1/37 on 27 and 1/1.8 on 29 (docs/speed.md)."""

_ERLEXEC_SPECIAL = re.compile(r"[ \t\n\r\v\f'\"\\]")
"""What separates or quotes words in ERL_AFLAGS (build_args_from_string in erts/etc/common/erlexec.c)."""


class FlagFields(TypedDict):
    """What a node's flags are made of. `directory` (of the node) and `ebin` (of the agent) are absolute.

    `libraries`: absolute directories with code that the node's own release lacks (runtime.find_libraries).
    """

    node: NodeName
    carrier: Carrier
    directory: str
    ebin: str
    address: str
    port: int
    libraries: NotRequired[Sequence[str]]
    epmd: NotRequired[Epmd]


def erl_aflags(**fields: Unpack[FlagFields]) -> str:
    """The value of ERL_AFLAGS that puts the guard into a node's VM, whatever command starts it.

    It is made of `flag_words`. Raises ConfigError for what the emulator would not get as it is.
    """
    flags = " ".join(map(escape_for_erlexec, flag_words(**fields)))
    if len(os.fsencode(flags)) > _MAX_ENVIRONMENT_BYTES:
        raise refused(
            "cluster.state_dir",
            "ERL_AFLAGS would be longer than an environment variable may be",
            "shorten it",
        )
    return flags


def flag_words(**fields: Unpack[FlagFields]) -> list[str]:
    """The flags of `erl_aflags` as the emulator gets them, one argument each.

    They hold no secret: arguments and environments can be read in /proc. Raises ConfigError.
    """
    node, carrier, directory = fields["node"], fields["carrier"], fields["directory"]
    address, port = fields["address"], fields["port"]
    interface = interface_term(carrier, address)
    words = ["-distsec_dir", text_path(directory)]
    words += ["-mode", "interactive"]  # -s and -proto_dist fail in embedded releases; the first -mode wins
    words += ["-pa", text_path(fields["ebin"])]
    if libraries := fields.get("libraries", ()):
        words += ["-pz", *map(text_path, libraries)]  # behind the release's own, which win where it has them
    words += ["-name" if node.long else "-sname", str(node)]
    words += ["-proto_dist", proto_dist(carrier, address)]
    if carrier.encrypted:
        words += ["-ssl_dist_optfile", text_path(f"{directory}/{OPTFILE}")]
    words += ["-epmd_module", "distsec_epmd", "-start_epmd", "false", "-nocookie"]
    # A -no_epmd of the node's own would leave distsec_epmd, and so the boot guard, out, since
    # erl_distribution:init/1 looks for exactly one, without a value. This takes the effect from any other.
    words += ["-no_epmd", "false"]
    if fields.get("epmd", Epmd.NONE) is Epmd.NONE:
        # For what asks OTP's own erl_epmd, and not the node's resolver, where its node listens: RabbitMQ at
        # boot. Where there is an epmd it answers that, and with this flag erl_epmd would not hear it refuse.
        words += ["-erl_epmd_port", str(checked_port(port))]
    words += ["-kernel", "inet_dist_use_interface", erlang_term(interface)]
    words += ["inet_dist_listen_min", str(checked_port(port)), "inet_dist_listen_max", str(port)]
    words += [
        "inet_dist_listen_options",
        erlang_term(_BUFFERS),
        "inet_dist_connect_options",
        erlang_term(_BUFFERS),
    ]
    return words


def escape_for_erlexec(word: str) -> str:
    """`word` such that erlexec takes it out of ERL_AFLAGS as one argument, unchanged."""
    return _ERLEXEC_SPECIAL.sub(lambda match: "\\" + match[0], word)
