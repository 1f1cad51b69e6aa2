"""How the findings of `distsec check` look: the worst first, in 80 columns. Pure.

Everything is rich `Text`, never a markup string; the texts were escaped when the findings were made.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from distsec.posture.finding import Finding, Severity

_STYLES = {
    Severity.CRITICAL: "bold white on red",
    Severity.HIGH: "bold red",
    Severity.MEDIUM: "yellow",
    Severity.LOW: "cyan",
    Severity.INFO: "dim",
}
COLUMNS = 80
_LABEL = 6
_INDENT = "  " + " " * _LABEL


def view(findings: Sequence[Finding]) -> RenderableType:
    """All of it, with a summary as the last line."""
    return Group(*_parts(findings))


def _parts(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    for finding in findings:
        style = _STYLES[finding.severity]
        title = Text.assemble((f"{finding.severity.upper():8}", style), " ", (finding.code, "bold"))
        if not finding.counted and finding.severity is not Severity.INFO:
            title.append("  (not counted)", "dim")
        yield title
        yield from _lines(finding)
        yield Text()
    yield _summary(findings)


def _lines(finding: Finding) -> Iterator[Text]:
    for label, text in (("what", finding.what), ("where", finding.where), ("fix", finding.fix)):
        room = COLUMNS - len(_INDENT)
        for line in textwrap.wrap(text, room, break_on_hyphens=False):
            yield Text.assemble((f"  {label:{_LABEL}}", "dim"), line)
            label = ""


def _summary(findings: Sequence[Finding]) -> Text:
    counted = Counter(finding.severity for finding in findings if finding.counted)
    aside = sum(1 for finding in findings if not finding.counted and finding.severity is not Severity.INFO)
    told = sum(1 for finding in findings if finding.severity is Severity.INFO)
    worst = min(counted, key=lambda severity: severity.rank, default=None)
    if worst is None:
        text = Text("nothing above info", "green")
    else:
        parts = [f"{counted[severity]} {severity}" for severity in Severity if counted[severity]]
        text = Text(", ".join(parts), _STYLES[worst])
    rest = [f"{told} to be known"] if told else []
    rest += [f"{aside} not counted (releases of OTP, a shared uid)"] if aside else []
    return text.append(f"; {', '.join(rest)}" if rest else "", "dim")
