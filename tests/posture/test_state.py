"""Planted misconfigurations of files, cookies, options, policy and configuration: each is found under its
code, and nothing else is, in a set-up that the first test shows to be clean.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from distsec.posture.collect import reading
from distsec.posture.finding import Code, Severity
from distsec.posture.judge import files
from tests.posture.planted import A, B, Corpus, Plant, Planted, check_planted, told

CASES = Corpus()
plants = CASES.plants


def test_a_fresh_set_up_has_nothing_above_info(clean: Planted) -> None:
    findings = clean.check()
    assert told(findings) == set()
    assert {each.code for each in findings if each.severity is Severity.INFO} == {
        Code.CA_KEY_UNSEALED,
        Code.ORCHESTRATOR_ABSENT,
    }


# ---- files ----------


@plants(Code.SECRET_EXPOSED)
def key_for_everybody(clean: Planted) -> None:
    (clean.node() / "key.pem").chmod(0o644)


@plants(Code.SECRET_EXPOSED)
def ca_key_for_the_group(clean: Planted) -> None:
    (clean.state / "ca/key.pem").chmod(0o640)


@plants(Code.SECRET_EXPOSED)
def cookies_for_everybody(clean: Planted) -> None:
    (clean.node() / "cookie.term").chmod(0o604)


@plants(Code.SECRET_EXPOSED)
def pair_on_its_way_for_everybody(clean: Planted) -> None:
    pair = clean.state / "ca/pairs/a.pem"
    pair.parent.mkdir(mode=0o700)
    pair.write_bytes(
        (clean.node() / "certificate.pem").read_bytes() + (clean.node() / "key.pem").read_bytes()
    )
    pair.chmod(0o644)


@plants(Code.FILE_EXPOSED)
def policy_for_everybody(clean: Planted) -> None:
    (clean.node() / "policy.term").chmod(0o644)


@plants(Code.FILE_OWNER)
def certificate_of_another_user(clean: Planted) -> None:
    give(clean.node() / "certificate.pem")


@plants(Code.FILE_SYMLINK)
def certificate_elsewhere(clean: Planted) -> None:
    path = clean.node() / "certificate.pem"
    path.rename(clean.directory / "elsewhere.pem")
    path.symlink_to(clean.directory / "elsewhere.pem")


@plants(Code.FILE_KIND)
def a_pipe_among_the_files(clean: Planted) -> None:
    os.mkfifo(clean.node() / "pipe", 0o600)


@plants(Code.DIRECTORY_EXPOSED)
def state_for_everybody(clean: Planted) -> None:
    clean.state.chmod(0o755)


@plants(Code.DIRECTORY_WRITABLE)
def node_directory_for_the_group(clean: Planted) -> None:
    clean.node().chmod(0o770)


@plants(Code.PARENT_REPLACEABLE)
def parent_of_another_user(clean: Planted) -> None:
    give(clean.directory)


@plants(Code.CONFIGURATION_INVALID)
def parent_for_everybody(clean: Planted) -> None:
    clean.directory.chmod(0o777)


def give(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 4242, -1)


# ---- cookies, options, policy ----------


@plants(Code.COOKIE_WEAK)
def short_cookie(clean: Planted) -> None:
    with_cookie(clean, "q1w2e3r4t5")


@plants(Code.COOKIE_WEAK)
def long_cookie_of_few_characters(clean: Planted) -> None:
    with_cookie(clean, "ab" * 20)


@plants(Code.COOKIE_WELL_KNOWN)
def cookie_of_a_tutorial(clean: Planted) -> None:
    with_cookie(clean, "secretcookie")


@plants(Code.COOKIE_OLD)
def secret_of_last_year(clean: Planted) -> None:
    path = clean.state / "ca/cookie.secret"
    old = path.stat().st_mtime - 400 * 86_400
    os.utime(path, (old, old))


@plants(Code.COOKIE_SHARED)
def one_default_cookie(clean: Planted) -> None:
    for name in (A, B):
        with_cookie(clean, "d" + "0123456789abcdef" * 4, name)


def with_cookie(clean: Planted, cookie: str, name: str = A) -> None:
    path = clean.node(name) / "cookie.term"
    clean.rewrite(path, lambda text: re.sub(r'default => <<"\w+">>', f'default => <<"{cookie}">>', text))


@plants(Code.STATE_DAMAGED)
def cookie_file_garbage(clean: Planted) -> None:
    clean.rewrite(clean.node() / "cookie.term", lambda text: text.replace("}}.", "}"))


@plants(Code.OPTFILE_MISSING)
def optfile_removed(clean: Planted) -> None:
    (clean.node() / "dist.conf").unlink()


@plants(Code.OPTFILE_MALFORMED)
def optfile_garbage(clean: Planted) -> None:
    rewrite_optfile(clean, lambda text: text.replace("{server,", "{server;"))


@plants(Code.OPTFILE_ALTERED)
def optfile_with_a_comment_more(clean: Planted) -> None:
    clean.rewrite(clean.node() / "dist.conf", lambda text: text + "% harmless\n")


@plants(Code.OPTION_UNSAFE)
def optfile_that_verifies_nobody(clean: Planted) -> None:
    rewrite_optfile(clean, lambda text: text.replace("verify_peer", "verify_none"))


def rewrite_optfile(clean: Planted, change: Callable[[str], str]) -> None:
    """With the guard's digest, as whoever can write the one can write the other."""
    path = clean.node() / "dist.conf"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    clean.rewrite(path, change)
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    clean.rewrite(clean.node() / "guard.term", lambda text: text.replace(before, after))


@plants(Code.FLAG_FORBIDDEN)
def a_carrier_in_a_file_of_the_command(clean: Planted) -> None:
    (clean.directory / "vm.args").write_text("-proto_dist inet_tcp\n")
    clean.edit(lambda text: text.replace('"-noinput"', '"-noinput", "-args_file", "vm.args"', 1))


@plants(Code.POLICY_MISSING)
def policy_removed(clean: Planted) -> None:
    (clean.node() / "policy.term").unlink()


@plants(Code.POLICY_SIGNATURE)
def policy_with_a_guest(clean: Planted) -> None:
    clean.rewrite(
        clean.node() / "policy.term", lambda text: text.replace(B, "z@127.0.0.1").replace('/b"', '/z"')
    )


@plants(Code.POLICY_OUTDATED)
def policy_of_last_week(clean: Planted) -> None:
    clean.overlay(generation=9)


@plants(Code.POLICY_MARK)
def mark_removed(clean: Planted) -> None:
    (clean.node() / "policy.mark").unlink()


@plants(Code.STATE_DAMAGED)
def overlay_garbage(clean: Planted) -> None:
    clean.overlay()
    (clean.state / "policy.overlay").write_text("{")


@plants(Code.STATE_DAMAGED)
def ports_garbage(clean: Planted) -> None:
    (clean.state / "ports.json").write_text('{"ports":[]}')


@plants(Code.STATE_DAMAGED)
def state_removed(clean: Planted) -> None:
    clean.state.rename(clean.directory / "gone")


# ---- ports ----------


@plants(Code.PORT_OF_STRANGER)
def somebody_at_a_node_s_port(clean: Planted) -> None:
    port = json.loads((clean.state / "ports.json").read_text())["ports"][A]
    clean.keep.enter_context(socket.create_server(("127.0.0.1", port)))


@plants(Code.LISTENER_MISSING)
def a_node_that_does_not_listen(clean: Planted) -> None:
    clean.beam("-distsec_dir", str(clean.node()), "-name", A, "-proto_dist", "distsec", "-nocookie")


# ---- configuration ----------


@plants(Code.CONFIGURATION_WARNING)
def carrier_of_otp(clean: Planted) -> None:
    clean.edit(lambda text: text.replace('#carrier = "distsec"', 'carrier = "inet_tls"'))


@plants(Code.NOT_ENFORCED)
def key_that_does_nothing(clean: Planted) -> None:
    clean.edit(lambda text: text + "\n[security.rbac]\nenabled = true\n")


@plants(Code.PEER_NOT_IMPORTED)
def peer_of_a_host_that_nobody_imported(clean: Planted) -> None:
    table = '\n[[peers]]\nname = "far@192.0.2.9"\naddress = "192.0.2.9"\nport = 9100\n'
    listed = 'allowed_nodes = ["far@192.0.2.9",'
    clean.edit(lambda text: text.replace("allowed_nodes = [", listed) + table)


@plants(Code.CONFIGURATION_READABLE)
def variables_for_everybody(clean: Planted) -> None:
    clean.edit(lambda text: text + '\n[nodes.environment]\nDATABASE_URL = "postgres://u:p@h"\n')
    clean.config.chmod(0o644)


@plants(Code.CONFIGURATION_READABLE)
def variables_for_a_group(clean: Planted) -> None:
    clean.edit(lambda text: text + '\n[nodes.environment]\nDATABASE_URL = "postgres://u:p@h"\n')
    clean.config.chmod(0o640)


@plants(Code.FILE_WRITABLE)
def configuration_for_the_group(clean: Planted) -> None:
    clean.config.chmod(0o660)


@pytest.mark.parametrize(("code", "plant"), CASES, ids=[plant.__name__ for _, plant in CASES])
def test_what_is_planted_is_found_and_nothing_else(clean: Planted, code: Code, plant: Plant) -> None:
    check_planted(clean, code, plant)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_service_reads_roots_configuration_as_its_group_and_nobody_else_does(clean: Planted) -> None:
    clean.edit(lambda text: text + '\n[nodes.environment]\nDATABASE_URL = "postgres://u:p@h"\n')
    for path in (clean.state, *clean.state.rglob("*")):
        os.chown(path, 4321, 4322, follow_symlinks=False)
    os.chown(clean.config, 0, 4322)
    clean.config.chmod(0o640)
    assert Code.CONFIGURATION_READABLE not in told(clean.check())
    clean.config.chmod(0o644)
    found = next(each for each in clean.check() if each.code is Code.CONFIGURATION_READABLE)
    assert found.fix.startswith("chmod 0640 ")
    os.chown(clean.config, 0, 4323)
    clean.config.chmod(0o640)
    assert Code.CONFIGURATION_READABLE in told(clean.check())


# ---- more than is looked at ----------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of one part of the state so many files are looked at here."""
    monkeypatch.setattr(reading, "MAX_ENTRIES", 60)
    return 60


@pytest.mark.parametrize(
    "flooded", ["nodes/a@127.0.0.1", "nodes/a@127.0.0.1/many", "nodes/z@127.0.0.1", "ca", "ca/issued", "."]
)
def test_no_number_of_files_hides_what_is_wrong_with_those_that_matter(
    clean: Planted, few: int, flooded: str
) -> None:
    directory = clean.state / flooded
    directory.mkdir(mode=0o700, exist_ok=True)
    for number in range(30 * few):  # so that chance does not list the others among the first
        (directory / f"!{number}").touch(0o600)
    exposed = [clean.node(A) / "key.pem", clean.node(B) / "agent.key", clean.state / "ca/policy.key"]
    for path in exposed:
        path.chmod(0o644)
    findings = clean.check()
    assert {each.where for each in findings if each.code is Code.SECRET_EXPOSED} == set(map(str, exposed))
    [told_of] = [each for each in findings if each.code is Code.TOO_MANY_FILES]
    assert (told_of.severity, told_of.where) == (Severity.MEDIUM, str(directory.resolve()))


def test_many_nodes_with_many_files_each_are_looked_at_in_full(clean: Planted, few: int) -> None:
    for name in (A, B):
        for number in range(few // 2):
            (clean.node(name) / f"!{number}").touch(0o600)
    (clean.node(B) / "zz.key").touch(0o644)
    assert told(clean.check()) == {Code.SECRET_EXPOSED}


def test_many_findings_of_one_kind_are_told_as_one_with_their_number(clean: Planted) -> None:
    many = clean.node() / "many"
    many.mkdir(mode=0o700)
    for number in range(200):
        (many / f"{number:03}").touch(0o600)
        (many / f"{number:03}").chmod(0o644)
    (clean.node() / "policy.term").chmod(0o644)
    found = [each for each in clean.check() if each.code is Code.FILE_EXPOSED]
    assert len(found) == files.TOLD_ALIKE + 1
    assert str(clean.node() / "policy.term") in {each.where for each in found}, "what is known is told first"
    [rest] = [each for each in found if each.where == str(many)]
    assert rest.what.startswith(f"{201 - files.TOLD_ALIKE} more of the kind, the first of them {many}/")
