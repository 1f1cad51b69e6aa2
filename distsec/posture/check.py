"""All judges over one look's facts. Pure."""

from __future__ import annotations

from typing import Final

from distsec.posture.facts import Facts
from distsec.posture.finding import Finding, in_order
from distsec.posture.judge import (
    authority,
    certificates,
    configuration,
    cookies,
    files,
    listeners,
    options,
    orchestrator,
    pairs,
    releases,
)

_JUDGES: Final = (
    authority.judge,
    certificates.judge,
    configuration.judge,
    cookies.judge,
    files.judge,
    listeners.judge,
    options.judge,
    orchestrator.judge,
    pairs.judge,
    releases.judge,
)


def judge(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, once, the worst first."""
    return in_order(finding for each in _JUDGES for finding in each(facts))
