"""What no command says of itself: sections that the pages share, in the words of this project."""

from __future__ import annotations

CONFIGURATION = "/etc/distsec/distsec.toml"

ENVIRONMENT = {
    "DISTSEC_CONFIG": "The configuration, where there is no `-c`.",
    "DISTSEC_SECURITY_MODE": "Has to be what `[security] mode` says, where it is set.",
    "PATH": "Where `erl` and the programs of the nodes are looked for.",
    "CREDENTIALS_DIRECTORY": "Of systemd: `distsec-ca-passphrase` in it opens a sealed CA key.",
    "NOTIFY_SOCKET": "Of systemd: `distsec run` tells there that it is ready.",
    "NO_COLOR": "Where it is set nothing is coloured. Nothing is where stdout is no terminal.",
}

FILES = {
    "./distsec.toml, /etc/distsec/distsec.toml": "The configuration, where neither `-c` nor"
    " `DISTSEC_CONFIG` names one; see distsec.toml(5).",
    "state_dir/ca/": "The CA: its key, certificate and CRL, and the key that signs policies.",
    "state_dir/nodes/NODE/": "Of each node: key, certificate, trust bundle, TLS options, policy,"
    " cookies, log.",
    "state_dir/policy.overlay": "What `distsec allow`, `distsec deny` and `distsec certs revoke` have"
    " changed.",
    "state_dir/control.sock": "Where the orchestrator answers: root and its own user, and nobody below"
    " a managed node.",
}

SHARED = {"DISTSEC_CONFIG", "./distsec.toml, /etc/distsec/distsec.toml"}
"""Of ENVIRONMENT and FILES: what every command with a configuration has on its page."""

DESCRIPTION = (
    "Whoever is connected to a BEAM node can run any code in it. distsec starts the nodes of a cluster"
    " (RabbitMQ, ejabberd, Elixir, Erlang, Gleam: whatever runs `erl`) with generated mutual-TLS"
    " options; an agent inside each node watches every handshake and link, and whatever is not on the"
    " signed allowlist is refused in the handshake, with an event and a metric. Nodes outlive the"
    " orchestrator, and stay guarded without it.",
    "An error is one line on stderr: what, where, and what to do; `--debug` adds the traceback. Each"
    " `--json` answer is one document with a `schema`, and nothing else is on stdout.",
)

EXAMPLES = (
    "distsec init /etc/distsec --name shop --node web@10.0.0.5 --node jobs@10.0.0.5",
    "distsec run -c /etc/distsec/distsec.toml",
    "distsec status",
    "distsec deny jobs@10.0.0.5",
    "distsec check --host",
)

SEE_ALSO = ("erl(1)", "systemd.service(5)")

TOML = "One file, in TOML, says which BEAM nodes are started here, and who may link with whom."

TRUST = (
    "Whoever can write this file decides which commands run: it has to belong to root or to the user"
    " that runs distsec, and neither it nor its directory may be everybody's to write. Strings may hold"
    " ${NAME}, replaced from the environment ($${ for a literal)."
)
