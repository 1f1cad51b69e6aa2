"""Each alert of the shipped rules fires when it should, and is silent when it should be."""

# ruff: noqa: E501 - the table of cases

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.monitoring.rules import DAY, RULES, Case, alert_names, evaluate, program, series

REFUSALS = "distsec_security_refusals_total"
STATE = "distsec_node_state"
EXPIRY, BEGIN = (
    "distsec_certificate_expiry_timestamp_seconds",
    "distsec_certificate_not_before_timestamp_seconds",
)
CA_EXPIRY = "distsec_ca_expiry_timestamp_seconds"
UP = 'up{job="distsec",instance="h:9911"}'

YEAR_SECONDS = 365 * 86400


def refused(reason: str, values: str, direction: str = "in") -> dict[str, str]:
    return series(REFUSALS, values, f'direction="{direction}",reason="{reason}"')


def certificate(remaining_days: float, life_days: float) -> dict[str, str]:
    """Of a certificate that has so much of its life left at the time 0."""
    ends = remaining_days * 86400
    return series(EXPIRY, f"{ends:.0f}x60") | series(BEGIN, f"{ends - life_days * 86400:.0f}x60")


CASES = [
    Case("DistsecUnlistedLink", "a denied link is up", series("distsec_links", "0 1x5", 'verdict="deny"'), 2, True),
    Case("DistsecUnlistedLink", "one was up for a moment", refused("unlisted_link", "0 1x20"), 5, True),
    Case("DistsecUnlistedLink", "links that may be", series("distsec_links", "3x5", 'verdict="allow"')
         | series("distsec_links", "0x5", 'verdict="deny"') | refused("unlisted_link", "2x30"), 5, False),
    Case("DistsecUnlistedLink", "strangers are refused", refused("not_allowed", "0+9x30"), 20, False),
    Case("DistsecCarrierNotInForce", "found so", series("distsec_carrier_not_in_force", "0 1x5"), 2, True),
    Case("DistsecCarrierNotInForce", "proven", series("distsec_carrier_not_in_force", "0x5"), 2, False),
    Case("DistsecNodeTainted", "tainted", series("distsec_node_tainted", "1x5"), 1, True),
    Case("DistsecNodeTainted", "re-keyed", series("distsec_node_tainted", "1 1 0x5"), 4, False),
    Case("DistsecUnlistedNodeSeen", "a certificate for no listed name", refused("not_allowed", "0x5 1x30"), 8, True),
    Case("DistsecUnlistedNodeSeen", "it claims another's name", refused("name_not_in_certificate", "0x5 2x30"), 8, True),
    Case("DistsecUnlistedNodeSeen", "long ago", refused("not_allowed", "0x5 1x60"), 40, False),
    Case("DistsecUnlistedNodeSeen", "a port scan", refused("malformed", "0+50x30"), 20, False),
    Case("DistsecUnlistedNodeSeen", "what this node itself gave up", refused("not_allowed", "0+1x30", "out"), 20, False),
    Case("DistsecUnlistedNodeSeen", "the orchestrator was restarted", refused("not_allowed", "7x10 0x20"), 15, False),
    Case("DistsecDeniedNodeSeen", "it knocks", refused("denied", "0x5 3x30"), 8, True),
    Case("DistsecDeniedNodeSeen", "with a revoked certificate", refused("revoked", "0x5 3x30"), 8, True),
    Case("DistsecDeniedNodeSeen", "it stays away", refused("denied", "3x30"), 20, False),
    Case("DistsecRefusalsAboveNormal", "a quiet day, then a flood", refused("malformed", f"0x{DAY} 0+600x20"),
         DAY + 15, True),
    Case("DistsecRefusalsAboveNormal", "a flood on the first day", refused("malformed", "0+600x60"), 50, True),
    Case("DistsecRefusalsAboveNormal", "it has always been so", refused("malformed", f"0+60x{DAY + 30}"), DAY + 20, False),
    Case("DistsecRefusalsAboveNormal", "a few, on a fresh start", refused("malformed", "0+2x60"), 30, False),
    Case("DistsecRefusalsAboveNormal", "nothing at all", refused("malformed", f"0x{DAY}"), DAY - 1, False),
    Case("DistsecRefusalsAboveNormal", "a flood of a minute", refused("malformed", "0x30 600x60"), 33, False),
    Case("DistsecAgentSocketStranger", "another process", series("distsec_agent_refused_total", "0 1x20",
         'reason="process"'), 5, True),
    Case("DistsecAgentSocketStranger", "an agent that was slow", series("distsec_agent_refused_total", "0 1x20",
         'reason="timeout"'), 5, False),
    Case("DistsecDown", "no answer for 3 minutes", {UP: "1 0x9"}, 4, True),
    Case("DistsecDown", "a restart", {UP: "1 0 1x9"}, 4, False),
    Case("DistsecNotScraped", "no such job", {'up{job="node"}': "1x30"}, 15, True),
    Case("DistsecNotScraped", "scraped", {UP: "1x30"}, 15, False),
    Case("DistsecNodeFatal", "given up", series(STATE, "0 1x5", 'state="FATAL"'), 3, True),
    Case("DistsecNodeFatal", "it runs", series(STATE, "0x5", 'state="FATAL"')
         | series(STATE, "1x5", 'state="RUNNING"'), 3, False),
    Case("DistsecNodeNotRunning", "in back-off for ever", series(STATE, "1x20", 'state="BACKOFF"')
         | series(STATE, "0x20", 'state="STARTING"'), 8, True),
    Case("DistsecNodeNotRunning", "between back-off and start", series(STATE, "1 0 1 0 1 0 1 0 1 0", 'state="BACKOFF"')
         | series(STATE, "0 1 0 1 0 1 0 1 0 1", 'state="STARTING"'), 8, True),
    Case("DistsecNodeNotRunning", "stopped by the operator", series(STATE, "1x20", 'state="STOPPED"')
         | series(STATE, "0x20", 'state="STARTING"'), 8, False),
    Case("DistsecNodeNotRunning", "a start takes a while", series(STATE, "1 1 0x20", 'state="STARTING"'), 8, False),
    Case("DistsecNodeFlapping", "four more in a quarter of an hour", series("distsec_node_starts_total", "1x15 2 3 4 5 6x5"),
         20, True),
    Case("DistsecNodeFlapping", "a restart now and then", series("distsec_node_starts_total", "1x30 2x30"), 40, False),
    Case("DistsecNodeFlapping", "the orchestrator was restarted", series("distsec_node_starts_total", "9x10 0x20"), 15, False),
    Case("DistsecAgentLost", "of a node that runs", series("distsec_agent_connected", "1 0x9")
         | series(STATE, "1x9", 'state="RUNNING"'), 4, True),
    Case("DistsecAgentLost", "of a node that was stopped", series("distsec_agent_connected", "1 0x9")
         | series(STATE, "1 0x9", 'state="RUNNING"'), 4, False),
    Case("DistsecPolicyNotActive", "a change that does not arrive",
         series("distsec_policy_generation", "3 4x9", 'which="wanted"')
         | series("distsec_policy_generation", "3x9", 'which="active"'), 5, True),
    Case("DistsecPolicyNotActive", "a change on its way", series("distsec_policy_generation", "3 4x9", 'which="wanted"')
         | series("distsec_policy_generation", "3 3 4x9", 'which="active"'), 5, False),
    Case("DistsecPolicyNotActive", "a node that is stopped", series("distsec_policy_generation", "4x9", 'which="wanted"'),
         5, False),
    Case("DistsecEventsDropped", "refusals in a flood", series("distsec_events_dropped_total", "0 4000x20",
         'lane="refusals"'), 5, True),
    Case("DistsecEventsDropped", "none lately", series("distsec_events_dropped_total", "4000x60", 'lane="refusals"'), 30,
         False),
    Case("DistsecCertificateNotRenewed", "of a year, 14 days left", certificate(14, 365), 1, True),
    Case("DistsecCertificateNotRenewed", "of an hour, 9 minutes left", certificate(9 / 1440, 1 / 24), 1, True),
    Case("DistsecCertificateNotRenewed", "of a year, as the renewal begins", certificate(29, 365), 1, False),
    Case("DistsecCertificateNotRenewed", "of a day, 6 hours left", certificate(0.25, 1), 1, False),
    Case("DistsecCertificateExpiring", "of a year, 2 days left", certificate(2, 365), 1, True),
    Case("DistsecCertificateExpiring", "it has ended", certificate(-1, 365), 1, True),
    Case("DistsecCertificateExpiring", "of a year, 10 days left", certificate(10, 365), 1, False),
    Case("DistsecCAExpiring", "60 days", series(CA_EXPIRY, f"{60 * 86400}x9"), 1, True),
    Case("DistsecCAExpiring", "a year", series(CA_EXPIRY, f"{YEAR_SECONDS}x9"), 1, False),
    Case("DistsecCAExpiringSoon", "10 days", series(CA_EXPIRY, f"{10 * 86400}x9"), 1, True),
    Case("DistsecCAExpiringSoon", "60 days", series(CA_EXPIRY, f"{60 * 86400}x9"), 1, False),
    Case("DistsecCertificateRefused", "a file that was not taken", series("distsec_certificates_refused_total", "0 1x9"), 3,
         True),
    Case("DistsecCertificateRefused", "none", series("distsec_certificates_refused_total", "0x9"), 3, False),
    Case("DistsecClockStepped", "set ahead", series("distsec_clock_steps_total", "0 1x9", 'direction="ahead"'), 3, True),
    Case("DistsecClockStepped", "steady", series("distsec_clock_steps_total", "0x9", 'direction="ahead"'), 3, False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.what}")
def test_an_alert_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    done = evaluate(case, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_both_ways() -> None:
    tried = {(case.alert, case.fires) for case in CASES}
    assert {(name, fires) for name in alert_names() for fires in (True, False)} == tried


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    promtool = program("promtool", "prometheus")
    for arguments in (
        ["check", "rules", str(RULES)],
        ["check", "config", str(RULES.parent / "prometheus.yml")],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
