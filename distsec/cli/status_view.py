"""How `distsec status` looks: violations first and loud, then nodes, links and refusals, in 80 columns. Pure.

Everything is rich `Text`, never a markup string, and every value passes the escaper: a node name such as
`[red]x@host` or one with control characters is shown as what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from distsec.cli import status_words as words
from distsec.cli.health import ALL_WELL, Health
from distsec.model.cluster import NodeState
from distsec.model.policy import Verdict
from distsec.model.text import escape

LOUD = "bold white on red"
BAD = "bold red"
UNEASY = "yellow"
GOOD = "green"
FAINT = "dim"

_STATE_STYLES = {str(NodeState.RUNNING): GOOD, str(NodeState.FATAL): BAD, str(NodeState.STOPPED): FAINT}
_SOON_SECONDS = 14 * 86400
"""A certificate that expires within this is shown as uneasy."""


MAX_LINKS_SHOWN = 200
"""Of each node, those that are not allowed first: a node may claim any number."""


def view(status: Mapping[str, Any], health: Health, now: float) -> RenderableType:
    """The whole of it; `now` is Unix seconds."""
    return Group(*_parts(status, health, now))


def _parts(status: Mapping[str, Any], health: Health, now: float) -> Iterator[RenderableType]:
    for violation in health.violations:
        yield Text.assemble((" VIOLATION ", LOUD), " ", (escape(violation, 1024), BAD), overflow="fold")
    for trouble in health.degraded:
        yield Text.assemble(("degraded", UNEASY), f"  {escape(trouble, 1024)}", overflow="fold")
    if health.violations or health.degraded:
        yield Text()
    yield _headline(status, health)
    if isinstance(rotation := status.get("ca_rotation"), Mapping):
        phase = words.shown(rotation.get("phase")).replace("_", " ")
        yield Text(f"rotation of the CA: {phase} (see `distsec certs rotate-ca status`)", UNEASY)
    nodes = [node for node in status.get("nodes", []) if isinstance(node, Mapping)]
    yield Text()
    yield _nodes(nodes, now)
    yield Text()
    if any(node.get("links") for node in nodes):
        yield _links(nodes, status.get("cluster"), now)
    else:
        yield Text("no links")
    refusals = [refusal for refusal in status.get("refusals", []) if refusal.get("count")]
    if refusals:
        yield Text()
        yield _refusals(refusals)


def _headline(status: Mapping[str, Any], health: Health) -> Text:
    verdict, style = ("all well", GOOD) if health.exit_code == ALL_WELL else ("degraded", UNEASY)
    if health.violations:
        verdict, style = "violation", BAD
    facts = [words.shown(status.get(key)) for key in ("mode", "carrier")]
    generation = status.get("policy_generation")
    if generation is not None:
        facts.append(f"policy {words.shown(generation)}")
    cluster = words.shown(status.get("cluster"))
    return Text.assemble("cluster ", (cluster, "bold"), f" ({', '.join(facts)}): ", (verdict, style))


def _table(*columns: str, fold: tuple[str, ...]) -> Table:
    """A plain table: columns in `fold` break where they must, the others never do."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        folds = column in fold
        table.add_column(column, no_wrap=not folds, overflow="fold")
    return table


def _nodes(nodes: list[Mapping[str, Any]], now: float) -> RenderableType:
    table = _table(
        "NODE", "STATE", "PID", "OTP", "UPTIME", "AGENT", "POLICY", "EXPIRES", "LINKS", fold=("NODE",)
    )
    for node in nodes:
        certificate = node.get("certificate") or {}
        otp, agent = words.shown(node.get("otp")), words.shown(node.get("agent"))
        table.add_row(
            Text(words.shown(node.get("name"))),
            Text(words.shown(node.get("state")), _STATE_STYLES.get(str(node.get("state")), UNEASY)),
            Text(words.shown(node.get("pid"))),
            Text(f"{otp}*" if node.get("support") == "unproven" else otp),
            Text(words.duration(node.get("uptime_seconds"))),
            Text(agent, "" if agent == "connected" else UNEASY),
            Text(words.shown(node.get("policy_generation"))),
            _expiry(certificate.get("not_after"), now),
            Text(str(len(node.get("links", [])))),
        )
    if any(node.get("support") == "unproven" for node in nodes):
        return Group(table, Text("* unproven: the test-suite does not run on this OTP release", FAINT))
    return table


def _links(nodes: list[Mapping[str, Any]], cluster: object, now: float) -> Table:
    """A heading for each node, and a row for each of its links: below the peer's name its identity, and why
    it is not allowed; 80 columns hold no more side by side."""
    table = _table(
        "LINKS OF / WITH", "DIR", "HIDDEN", "TLS", "EXPIRES", "UP", "VERDICT", fold=("LINKS OF / WITH",)
    )
    for node in nodes:
        links = sorted(node.get("links", []), key=lambda link: link.get("verdict") == Verdict.ALLOW)
        if links:
            table.add_row(Text(words.shown(node.get("name"))))
        for link in links[:MAX_LINKS_SHOWN]:
            table.add_row(*_link(link, cluster, now))
        if len(links) > MAX_LINKS_SHOWN:
            more = f"{len(links) - MAX_LINKS_SHOWN} more: distsec status --json"
            table.add_row(Padding(Text(more, FAINT), (0, 0, 0, 2)))
    return table


def _link(link: Mapping[str, Any], cluster: object, now: float) -> Iterator[RenderableType]:
    allowed = link.get("verdict") == Verdict.ALLOW
    peer = Text(words.shown(link.get("peer")), "" if allowed else BAD)
    if link.get("identity") is not None:  # with cookies only there is none to show
        peer.append(f"\n{words.identity(link['identity'], cluster)}", FAINT)
    if link.get("reason"):
        peer.append(f"\n{words.shown(link.get('reason'))}", BAD)
    yield Padding(peer, (0, 0, 0, 2))
    yield Text(words.shown(link.get("direction")))
    yield Text(words.yes_no(link.get("hidden")))
    tls = Text(words.tls_version(link.get("tls_version")))
    yield tls.append(f" {words.cipher(link.get('cipher'))}" if link.get("cipher") else "", FAINT)
    yield _expiry(link.get("not_after"), now)
    yield Text(words.elapsed(link.get("since"), now))
    yield Text(words.shown(link.get("verdict")), GOOD if allowed else LOUD)


def _refusals(refusals: list[Mapping[str, Any]]) -> Table:
    table = _table("REFUSED BY", "DIRECTION", "REASON", "COUNT", fold=("REFUSED BY",))
    table.columns[-1].justify = "right"
    for refusal in refusals:
        table.add_row(
            *(Text(words.shown(refusal.get(key))) for key in ("node", "direction", "reason", "count"))
        )
    return table


def _expiry(not_after: object, now: float) -> Text:
    soon = isinstance(not_after, int | float) and not_after - now < _SOON_SECONDS
    return Text(words.remaining(not_after, now), UNEASY if soon else "")
