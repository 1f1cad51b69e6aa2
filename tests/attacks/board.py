"""The scoreboard: what came of each attack on each carrier and release, as JSON, as a table, as a page.
Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.attacks.catalogue.attack import Outcome

COLUMNS = 80


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `scripts/attack --json`; None: nobody can be asked. `reason`: as the carrier's events
    have it.
    """

    attack: str
    carrier: str
    otp: str
    tried: int
    executed: int
    nodeups: int | None
    event_seen: int | None
    reason: str | None
    median_refusal_ms: float | None

    @property
    def got_in(self) -> bool:
        return self.executed > 0 or bool(self.nodeups)


def row(outcome: Outcome, carrier: str, otp: str, nodeups: int | None, evidence: Counter[str] | None) -> Row:
    """What the attacker saw, and what the victim and its operator saw: `nodeups` and `evidence` since the
    attack began.
    """
    attack = outcome.attack
    if attack.counts_links and evidence is not None:
        evidence = Counter({reason: evidence[reason] for reason in attack.reasons if evidence[reason]})
    named = [reason for reason, _ in (evidence or Counter()).most_common() if reason != LOGGED]
    return Row(
        attack.name,
        carrier,
        otp,
        len(outcome.tries),
        outcome.executed,
        max(outcome.linked, outcome.executed) if attack.counts_links or nodeups is None else nodeups,
        None if evidence is None else sum(n for reason, n in evidence.items() if reason != DIED),
        ", ".join(named) or None,
        outcome.median_refusal_ms,
    )


LOGGED = "logged"
"""Evidence that names no reason of its own: a line in a log."""

DIED = "the victim died"


def document(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What `--json` prints."""
    return [asdict(each) for each in rows]


# ---- a table, 80 columns wide

_WIDTHS = (23, 6, 8, 7, 6, 8)
_HEADS = ("attack", "tried", "executed", "nodeups", "events", "ms", "reason")


def heading(carrier: str, otp: str) -> str:
    return f"\n{carrier}, OTP {otp}\n{_line(_HEADS)}"


def line(each: Row) -> str:
    return _line(
        (
            each.attack,
            str(each.tried),
            str(each.executed),
            _text(each.nodeups),
            _text(each.event_seen),
            _text(each.median_refusal_ms),
            each.reason or "-",
        )
    )


def _line(cells: Sequence[str]) -> str:
    first, *numbers, last = cells
    text = f"{first:<{_WIDTHS[0]}}" + "".join(
        f" {cell:>{width}}" for cell, width in zip(numbers, _WIDTHS[1:], strict=True)
    )
    room = COLUMNS - len(text) - 1
    return f"{text} {last if len(last) <= room else last[: room - 1] + '…'}"


def _text(value: float | None) -> str:
    return "-" if value is None else str(value)


# ---- a page


def page(
    rows: Sequence[Row], titles: Mapping[str, str], *, date: str, versions: str, commands: Sequence[str]
) -> str:
    """docs/attack-board.md: who got in, and then how the carrier refused."""
    columns = sorted(
        {(each.carrier, each.otp) for each in rows}, key=lambda column: (_rank(column[0]), column)
    )
    by = {(each.attack, each.carrier, each.otp): each for each in rows}
    attacks = list(dict.fromkeys(each.attack for each in rows))
    parts = [_PREFACE.format(date=date, versions=versions, commands="\n".join(commands))]
    parts.append("| attack | " + " | ".join(f"{carrier} {otp}" for carrier, otp in columns) + " |")
    parts.append("|---|" + "---:|" * len(columns))
    for attack in attacks:
        cells = [_cell(by.get((attack, *column))) for column in columns]
        parts.append(f"| {titles.get(attack, attack)} | " + " | ".join(cells) + " |")
    parts.append(_EVIDENCE)
    parts.append("| attack | tried | events | reasons | median, ms |")
    parts.append("|---|---:|---:|---|---:|")
    for attack in attacks:
        own = [by[attack, *column] for column in columns if column[0] == OURS and (attack, *column) in by]
        reasons = {reason for each in own for reason in (each.reason or "").split(", ")}
        if own:
            parts.append(
                f"| `{attack}` | {' '.join(str(each.tried) for each in own)} "
                f"| {' '.join(_text(each.event_seen) for each in own)} "
                f"| {', '.join(sorted(reasons))} "
                f"| {' '.join(_text(each.median_refusal_ms) for each in own)} |"
            )
    return "\n".join(parts) + "\n"


OURS = "distsec"


def _rank(carrier: str) -> int:
    order = (OURS, "distsec inet_tls", "stock inet_tls", "RabbitMQ")
    return order.index(carrier) if carrier in order else len(order)


def _cell(each: Row | None) -> str:
    if each is None:
        return ""
    text = f"{each.executed}/{each.tried}"
    if each.nodeups and not each.executed:
        text += f" ({each.nodeups} up)"
    return f"**{text}**" if each.got_in else text


_PREFACE = """# The board of attacks

Made by `scripts/attack --markdown` on {date}; do not edit it by hand. {versions}

```
{commands}
```

Each attack is tried again and again against one node: a managed one with distsec's carrier `distsec`, the
same with `carrier = "inet_tls"`, a node with stock TLS distribution as OTP's guide sets it up (`stock
inet_tls`), and RabbitMQ as its documentation sets up TLS between nodes. The attacker knows every cookie,
unless the attack is about cookies: that is what one node that was taken over gives away. `scripts/attack
--list` says what each attack is and needs.

*Executed* means that the victim did as it was told: it called the attacker back, or it answered a link or
a monitor. The attacker sends what shall run right behind the cookie, in the same write. An attack ends
after `--seconds`, however many attempts were wanted: the cell has the number that was tried.

## Executed / tried
Bold: code ran, or at least a link came up. An empty cell: the attack does not apply there, or takes what
that target lacks.
"""

_EVIDENCE = """
## What the operator sees of it with the carrier `distsec`
One event for each attempt. Numbers are those of OTP 25, 27, 29 in this order; the time is from the first
byte of an attempt until the victim has ended the connection, on a machine that runs attacker, victim and
orchestrator on two cores.
"""
