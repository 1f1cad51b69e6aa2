"""The configuration, the policy files that came of it, and the users that nodes run as. Pure."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator

from distsec.model.cluster import ClusterSpec, Mode
from distsec.posture.facts import Facts, PolicyFact, Role
from distsec.posture.finding import Code, Finding, Severity


def judge(facts: Facts) -> Iterator[Finding]:
    for problem in facts.configuration_problems:
        yield Finding.of(
            Severity.HIGH,
            Code.CONFIGURATION_INVALID,
            what=problem,
            where="the configuration",
            fix="correct it; `distsec run` refuses it as it is",
        )
    if facts.spec is not None:
        yield from _spec(facts.spec)
        yield from _peers(facts.spec)
        yield from _readable(facts, facts.spec)
        yield from _users(facts, facts.spec)
    for policy in facts.policies:
        yield from _policy(policy)
    for place, what, do in facts.damage:
        yield Finding.of(Severity.HIGH, Code.STATE_DAMAGED, what=what, where=place, fix=do)
    for vm in facts.vms:
        if vm.uid == 0 and not vm.managed and vm.carrier is not None:
            yield Finding.of(
                Severity.LOW,
                Code.BEAM_RUNS_AS_ROOT,
                what=f"{vm.holder} runs as root: whoever links with it is root",
                where=f"/proc/{vm.pid}",
                fix="run it as a user of its own",
            )
    for holder, pid in facts.elsewhere:
        yield _elsewhere(holder, pid)
    for what in facts.unseen:
        yield Finding.of(
            Severity.INFO,
            Code.NOT_SEEN,
            what=f"could not be looked at: {what}",
            where="this host",
            fix="run `distsec check` as root, or as the user that runs it",
        )


def _elsewhere(holder: str, pid: int) -> Finding:
    return Finding.of(
        Severity.INFO,
        Code.NOT_SEEN,
        what=f"what {holder} serves was not tried: it is in another network namespace",
        where=f"/proc/{pid}/ns/net",
        fix=f"nsenter --target {pid} --net distsec check --host",
    )


def _spec(spec: ClusterSpec) -> Iterator[Finding]:
    for warning in spec.warnings:
        yield Finding.of(
            _of_warning(spec, warning),
            Code.CONFIGURATION_WARNING,
            what=warning,
            where=spec.config_file,
            fix="change it there; then: distsec check",
        )
    for entry in spec.not_enforced:
        yield Finding.of(
            Severity.LOW,
            Code.NOT_ENFORCED,
            what=f"{entry.key} is accepted and does nothing: {entry.why}",
            where=spec.config_file,
            fix="take it out, and do not rely on it",
        )
    if spec.mode is not Mode.PRODUCTION:
        yield Finding.of(
            Severity.INFO,
            Code.MODE,
            what=f"the cluster runs in {spec.mode} mode"
            + ("" if spec.carrier.encrypted else ": cookies alone, on loopback alone"),
            where=spec.config_file,
            fix='set [security] mode = "production" before others can reach this host',
        )


def _peers(spec: ClusterSpec) -> Iterator[Finding]:
    """An address alone makes no link: both hosts need the other's key for the cookies of a pair."""
    known = {node.name for host in spec.hosts for node in host.nodes}
    for peer in spec.peers:
        if peer.name not in known:
            yield Finding.of(
                Severity.MEDIUM,
                Code.PEER_NOT_IMPORTED,
                what=f"{peer.name} has a [[peers]] table, and no cookie in common with the nodes here",
                where=spec.config_file,
                fix="distsec export there, distsec import here, and the other way round; docs/hosts.md",
            )


def _of_warning(spec: ClusterSpec, warning: str) -> Severity:
    """That a mode without encryption has none (config.check_mode) is what it is for."""
    chosen = spec.mode is not Mode.PRODUCTION and "neither encrypted" in warning
    return Severity.INFO if chosen else Severity.MEDIUM


def _readable(facts: Facts, spec: ClusterSpec) -> Iterator[Finding]:
    """Variables of nodes may be secrets of the application. A service reads what is root's as its group."""
    if not any(node.environment for node in spec.nodes):
        return
    state = next((fact for fact in facts.files if fact.path == str(spec.state_dir)), None)
    for fact in facts.files:
        if fact.role is not Role.CONFIGURATION:
            continue
        serves = fact.uid == 0 != fact.gid and (state is None or (state.uid != 0 and state.gid == fact.gid))
        if fact.mode & (stat.S_IROTH if serves else stat.S_IRGRP | stat.S_IROTH):
            yield Finding.of(
                Severity.LOW,
                Code.CONFIGURATION_READABLE,
                what=f"holds variables of nodes, perhaps secrets, and others may read it ({fact.mode:04o})",
                where=fact.path,
                fix=f"chmod {'0640' if serves else '0600'} {shlex.quote(fact.path)}",
            )


def _users(facts: Facts, spec: ClusterSpec) -> Iterator[Finding]:
    for node, what, fix in facts.unfit_users:
        yield Finding.of(Severity.HIGH, Code.NODE_USER_UNFIT, what=f"{node}: {what}", where=node, fix=fix)
    for node, what in facts.shared_users:
        yield Finding.of(
            Severity.HIGH if spec.mode is Mode.PRODUCTION else Severity.INFO,
            Code.NODE_USER_SHARED,
            what=what,
            where=node,
            fix="give each node a user and a group of its own (docs/configuration.md, Users)",
        )
    if facts.links_unprotected:
        yield Finding.of(
            Severity.MEDIUM,
            Code.HARDLINKS_UNPROTECTED,
            what="fs.protected_hardlinks is off: a node's user may link files of others into its directory",
            where="/proc/sys/fs/protected_hardlinks",
            fix="sysctl fs.protected_hardlinks=1, and keep it in /etc/sysctl.d",
        )
    if facts.shared_uid is None or not spec.nodes:
        return
    who = "root" if facts.shared_uid == 0 else f"uid {facts.shared_uid}"
    yield Finding.of(
        Severity.HIGH if spec.mode is Mode.PRODUCTION else Severity.INFO,
        Code.SHARED_UID,
        what=f"nodes and orchestrator run as {who}: whoever breaks into a node reads every other key",
        where=spec.state_dir,
        fix="give each node a `user` of its own (docs/configuration.md, Users); else seal the CA's key"
        " (distsec certs seal), or keep it on another host",
    )


def _policy(fact: PolicyFact) -> Iterator[Finding]:
    anew = f"distsec restart {fact.node}"
    if fact.missing:
        yield Finding.of(
            Severity.HIGH,
            Code.POLICY_MISSING,
            what=f"{fact.node} has no policy, so it admits nobody",
            where=fact.place,
            fix="distsec init",
        )
        return
    if fact.signed is False:
        yield Finding.of(
            Severity.HIGH,
            Code.POLICY_SIGNATURE,
            what=f"the policy of {fact.node} is not signed by this cluster: the node refuses it",
            where=fact.place,
            fix=f"see who changed it; then: {anew}",
        )
    elif fact.generation is not None and fact.wanted is not None and fact.generation != fact.wanted:
        yield Finding.of(
            Severity.MEDIUM,
            Code.POLICY_OUTDATED,
            what=f"the policy of {fact.node} is generation {fact.generation}, and {fact.wanted} is wanted",
            where=fact.place,
            fix="start the orchestrator (distsec run), which writes it anew",
        )
    if fact.mark_problem is not None:
        yield Finding.of(
            Severity.MEDIUM,
            Code.POLICY_MARK,
            what=f"the policy.mark of {fact.node} {fact.mark_problem}",
            where=fact.place.rpartition("/")[0] + "/policy.mark",
            fix="see who changed it, remove it, and start the orchestrator, which makes it anew",
        )
