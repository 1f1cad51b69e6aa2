"""A line of the log as a sentence for people, for where a log has a text of its own (the journal). Pure.

`a@10.0.0.1: refused a link with evil@10.0.0.9 from 10.0.0.9:40112 (not_allowed)`
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distsec.model.events import EventType

MAX_SENTENCE = 500

PHRASES: Mapping[str, str] = MappingProxyType(
    {
        EventType.NODE_CONNECTION_ATTEMPT: "link with",
        EventType.CERTIFICATE_VALIDATION_FAILED: "refused the certificate of",
        EventType.UNAUTHORIZED_ACCESS: "unauthorized access by",
        EventType.RATE_LIMIT_EXCEEDED: "too many attempts by",
        EventType.MESSAGE_SIGNATURE_INVALID: "a signature or proof does not verify",
        EventType.CERTIFICATE_ROTATED: "certificate rotated",
        EventType.CERTIFICATE_RENEWED: "certificate renewed",
        EventType.CERTIFICATE_REVOKED: "certificate revoked",
        EventType.CERTIFICATE_ISSUED: "certificate issued for",
        EventType.CERTIFICATE_REFUSED: "a certificate that was brought is not taken",
        EventType.CERTIFICATE_EXPIRING: "certificate is about to end, or has ended",
        EventType.NODE_STARTED: "started",
        EventType.NODE_STOPPED: "stopped",
        EventType.NODE_STATE_CHANGED: "is now",
        EventType.LINK_UP: "link is up with",
        EventType.LINK_DOWN: "link is down with",
        EventType.LINK_RENEWED: "link proven anew with",
        EventType.AGENT_CONNECTED: "agent connected",
        EventType.AGENT_LOST: "agent lost",
        EventType.AGENT_REFUSED: "a connection to its agent socket was refused",
        EventType.CA_ROTATION_PREPARED: "every node trusts the new CA too",
        EventType.CA_ROTATION_ACTIVATED: "every node serves a certificate of the new CA",
        EventType.CA_ROTATION_PRUNED: "every node refuses the old CA",
        EventType.CA_ROTATION_ROLLED_BACK: "the new CA is gone",
        EventType.COOKIE_ROTATED: "cookies rotated",
        EventType.POLICY_CHANGED: "policy changed for",
        EventType.POLICY_APPLIED: "policy applied",
        EventType.POLICY_ROLLED_BACK: "an older policy was put back",
        EventType.SHELL_ATTACHED: "shell attached",
        EventType.SHELL_DETACHED: "shell detached",
        EventType.EVENTS_DROPPED: "events were dropped",
        EventType.CONFIGURATION_RELOADED: "configuration reloaded",
        EventType.CLOCK_STEPPED: "the wall clock was set",
    }
)
"""Of each EventType (a test holds them together); what stands in `peer` follows where there is one."""

_VERDICTS = {("NodeConnectionAttempt", "deny"): "refused a link with", ("NodeConnectionAttempt", "allow"):
             "admitted a link with", ("UnauthorizedAccess", "deny"): "refused",
             ("ConfigurationReloaded", "deny"): "reload refused"}  # fmt: skip
_SAID = ("what", "why", "error")
"""Of a line that is no event, the fields that belong into its sentence."""


def sentence(event: str, fields: Mapping[str, Any]) -> str:
    """One line, at most MAX_SENTENCE characters. `fields` are those of the line, escaped already."""
    if event not in PHRASES:
        return _own(event, fields)[:MAX_SENTENCE]
    phrase = _VERDICTS.get((event, str(fields.get("result"))), PHRASES[event])
    detail = fields.get("detail")
    if event == EventType.NODE_STATE_CHANGED and detail:
        phrase, detail = f"{phrase} {detail}", None  # `FATAL: why`
    parts = [f"{fields['node']}: {phrase}" if fields.get("node") else phrase]
    parts += [str(fields["peer"])] if fields.get("peer") else []
    parts += [f"from {fields['address']}"] if fields.get("address") else []
    parts += [f"({fields['reason']})"] if fields.get("reason") else []
    if "suppressed" in fields:
        parts.append(f"and {fields['suppressed']} more of the kind")
    text = " ".join(parts)
    return (f"{text}: {detail}" if detail else text)[:MAX_SENTENCE]


def _own(event: str, fields: Mapping[str, Any]) -> str:
    who = f"{fields['node']}: " if fields.get("node") else ""
    said = [str(fields[key]) for key in _SAID if fields.get(key)]
    return who + ": ".join([event, *said])
