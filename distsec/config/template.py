"""The commented `distsec.toml` that `distsec init` writes. Pure: it returns text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from distsec.model.cluster import OnExit
from distsec.model.names import NodeName, check_trust_domain

_HEAD = """\
# distsec.toml: which BEAM nodes are started here, and who may link with whom.
#
# Whoever can write this file decides which commands run: keep it yours alone.
# Strings may hold ${{NAME}}, replaced from the environment ($${{ for a literal).
# After a change: systemctl reload distsec, or kill -HUP of `distsec run`.

[cluster]
# The name is the trust domain of the certificates: spiffe://{plain}/node/...
# It cannot be changed later without issuing every certificate anew.
name = {name}
# Keys, certificates, sockets, logs. Relative to this file.
state_dir = "state"
# When the orchestrator ends: "leave" the nodes running and guarded, or "stop".
on_exit = {on_exit}
# A node that does not prove its guard within this time is stopped.
#start_deadline_seconds = 30
# How long a node may take to stop before it is killed.
#stop_deadline_seconds = 20
# How long `distsec allow` waits for every node before it rolls back.
#acknowledge_deadline_seconds = 5
# How many nodes boot at the same time.
#start_parallel = 4

[security]
# production: mutual TLS 1.3 on every link, or no start.
# hybrid: cookies where every node is on loopback, mutual TLS beyond.
# development: cookies only, on loopback only.
# DISTSEC_SECURITY_MODE in the environment must say the same, if it is set.
mode = "production"

[security.distribution]
# Who may link. To link is to be able to run code: list only what you trust
# with every node. An empty list admits nobody.
allowed_nodes = {allowed}
# Where nodes listen that have no address of their own: one of this host's,
# or "tailscale". Without it: the IP address in the node's name, else loopback.
# Every interface ("0.0.0.0", "::") takes confirm_network = true besides.
#bind = "127.0.0.1"
#confirm_network = false
# Nodes without a port of their own get one of these, once, and keep it.
# Without this line they get free ones from 20000 to 29999.
#listen_ports = [9100, 9155]
# "mesh": every node dials every other one. "none": the applications dial.
#connect = "mesh"
# "distsec" binds the name that a node claims to its certificate before a link
# is up. "inet_tls" is stock OTP, which does not.
#carrier = "distsec"
# "loopback": the nodes register with an epmd that listens on loopback alone,
# for tools that ask one. Names are resolved from allowed_nodes either way.
#epmd = "none"

# Command-line tools of the nodes: hidden, inbound, with a certificate for it.
# The * stands for part of the name, never of the host.
#[[security.distribution.rules]]
#names = ["rabbitmqcli-*@127.0.0.1"]
#kind = "cli"

[metrics]
# Prometheus text at /metrics, without a password: keep it on loopback.
# Port 0 lets the system choose one; listen = false serves nothing.
# "tailscale:9911" listens in the tailnet; "0.0.0.0:9911" everywhere, and takes
# confirm_network = true besides.
listen = {listen}
#confirm_network = false

[logging]
# The output of each node is kept in its log/ and rotated at this size.
#max_bytes = 10485760

[certificates]
# Lifetime of the certificates that are issued from now on. For lives of less
# than a day lifetime_seconds takes its place (20 at least).
#days = 365
# How long before its end a certificate is renewed, by itself and with a new
# key. Without it: a third of its life, at most 30 days. The jitter (a tenth of
# that) keeps nodes that were issued together from being renewed together.
#renew_before_seconds = 2592000
#renew_jitter_seconds = 259200
# Whether a renewal ends and remakes the links as well, one after the other.
# With the carrier "distsec" there is no need: they are proven anew as they are.
#recycle_links = false

# Where the CA's key is sealed (`distsec certs seal`): a file of yours, 0600,
# with the passphrase. Without it nodes run on, and nothing new is issued.
#[certificates.ca]
#passphrase_file = "/etc/distsec/ca.passphrase"
"""

_NODE = """
[[nodes]]
name = {name}
# Started as it is, without a shell. Leave it out for a node that something
# else starts, and give that one the output of `distsec env NAME`.
command = {command}
"""

_NODE_OPTIONS = """\
# What its distribution listens on, IPv4 or IPv6. Without it: `bind` above.
#address = "127.0.0.1"
#port = 9100
# "always", "on-failure" or "never". More than restart_intensity restarts in
# restart_period_seconds, and the node is given up until you start it.
#restart = "always"
#restart_intensity = 5
#restart_period_seconds = 60
# A user of its own keeps the CA's key and other nodes' keys from it; for that
# distsec is root or has four capabilities (docs/configuration.md, Users).
#user = "poller"
#working_directory = "/"
# For a release of its own without ssl, crypto, public_key and asn1: the lib
# directory of an Erlang/OTP of the same version, which has them.
#otp_libraries = "/usr/lib/erlang/lib"
#environment = { LANG = "C.UTF-8" }
"""

_PEERS = """
# Nodes of this cluster on other hosts, so that the nodes here can dial them.
#[[peers]]
#name = "poller@192.0.2.10"
#address = "192.0.2.10"
#port = 9100
"""


def render_template(
    name: str,
    nodes: Sequence[NodeName],
    *,
    command: Sequence[str] = ("erl", "-noinput"),
    on_exit: OnExit = OnExit.LEAVE,
    metrics_listen: str = "127.0.0.1:9911",
) -> str:
    """A configuration of the cluster `name` with these `nodes`, each started by `command`.

    `distsec.config.load` takes what is returned without a problem. Raises NameInvalid for a name that no
    cluster can have.
    """
    names = [f"  {_quoted(str(node))},\n" for node in nodes]
    text = _HEAD.format(
        name=_quoted(check_trust_domain(name)),
        plain=name,
        on_exit=_quoted(str(on_exit)),
        allowed="[\n" + "".join(names) + "]" if names else "[]",
        listen=_quoted(metrics_listen),
    )
    for index, node in enumerate(nodes):
        words = ", ".join(map(_quoted, command))
        text += _NODE.format(name=_quoted(str(node)), command=f"[{words}]")
        text += _NODE_OPTIONS if index == 0 else ""
    return text + _PEERS


def _quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are a subset of TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").replace("${", "$${")
