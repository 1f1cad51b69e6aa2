"""`distsec certs renew`: new keys and certificates; with `--offline` from a CA that is elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import config_option
from distsec.errors import UsageError


@click.command("renew")
@click.argument("nodes", metavar="NODE...", nargs=-1, shell_complete=managed_nodes)
@click.option("--all", "everything", is_flag=True, help="Every managed node.")
@click.option("--offline", is_flag=True, help="The CA's key is on another host: see --out and --answer.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Write the request there.")
@click.option("--answer", metavar="FILE", type=click.Path(path_type=Path), help="Install what was signed.")
@click.option("--recycle", is_flag=True, help="End and remake the links too, one after the other.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
def command(
    nodes: tuple[str, ...],
    everything: bool,
    offline: bool,
    out: Path | None,
    answer: Path | None,
    recycle: bool,
    as_json: bool,
    config: str | None,
) -> int | None:
    """Gives nodes a new key and certificate.

    Returns when every one of them serves the new certificate, as seen over TLS, and its links are proven with
    it; they stay up. With the carrier inet_tls links keep the old one until they are remade: --recycle ends
    each and waits for it, one after the other. Nodes are renewed by themselves in time; this is for when you
    do not want to wait. Who is not done is named, with the reason, and the exit code is 70.

    \b
      distsec certs renew poller@127.0.0.1
      distsec certs renew --all

    \b
    The CA's key is on another host:
      here   distsec certs renew --offline NODE... --out ask.pem
      there  distsec certs sign ask.pem --out answer.pem
      here   distsec certs renew --offline --answer answer.pem
    """
    if offline:
        from distsec.cli.certs.offline import ask, bring

        if answer is None:
            ask(nodes, everything, out, config)
            return None
        if nodes or everything or out is not None:
            raise UsageError("an answer says itself for whom it is", do="give --answer FILE alone")
        return bring(answer, config)
    if out is not None or answer is not None:
        raise UsageError("--out and --answer are for a CA that is elsewhere", do="add --offline")
    from distsec.cli.certs.online import renew

    return renew(nodes, everything, recycle=recycle, as_json=as_json, config=config)
