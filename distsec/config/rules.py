"""What a `[[security.distribution.rules]]` table means: its kind, and the identity it is about. Pure."""

from __future__ import annotations

from distsec.config.fields import RuleKind
from distsec.config.schema import Rule
from distsec.model.identities import dns_identity


def kind_of(rule: Rule) -> RuleKind:
    """What is said, else what its names say: a `*` stands for names that command-line tools make up."""
    if rule.kind:
        return rule.kind
    return RuleKind.CLI if any("*" in name for name in rule.names or () if name) else RuleKind.NODE


def identity_of(rule: Rule) -> str | None:
    """As model.identities writes it, or a SPIFFE ID's beginning and `*`; None where the rule names none.

    Raises NameInvalid.
    """
    if rule.dns is not None:
        return dns_identity(rule.dns)
    if rule.subject is not None:
        # cryptography takes its time to load, and most configurations name no subject
        from distsec.pki.subject import subject_identity

        return subject_identity(rule.subject)
    if rule.identity is not None and rule.identity.startswith(("dns:", "dn:")):
        from distsec.pki.subject import identity_from_text

        return identity_from_text(rule.identity)
    return rule.identity
