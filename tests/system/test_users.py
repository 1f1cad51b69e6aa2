"""Nodes that run as users of their own: what one of them can reach, and that all of distsec still works.

The orchestrator is root, or a user with four capabilities; from inside a node neither makes a difference.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from distsec.beam import proc
from tests.releases import OTPS
from tests.system.cluster import free_ports
from tests.system.intruder import string
from tests.system.open_package import for_all
from tests.system.other_users import NODE_USERS, ORCHESTRATOR, UserCluster, require_users, uid
from tests.system.terminal import Terminal
from tests.system.test_epmd import end_epmd, holders, names
from tests.waiting import wait_until

FIRST = OTPS[:1]
"""For what OTP makes no difference to."""


@pytest.fixture(scope="module")
def open_beams(beams: Path) -> Iterator[Path]:
    require_users()
    copy = for_all(beams)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture(scope="module", params=["root", ORCHESTRATOR])
def shared(request: pytest.FixtureRequest, open_beams: Path, agent_ebin: Path) -> Iterator[UserCluster]:
    cluster = UserCluster(FIRST[0], open_beams, orchestrator=request.param)
    (port,) = free_ports(1)
    if request.param == ORCHESTRATOR:  # and their names are told to an epmd
        cluster.settings["security"]["distribution"]["epmd"] = "loopback"
        for node in cluster.names:
            cluster.table(node)["environment"] = {"ERL_EPMD_PORT": str(port)}
    try:
        with cluster:
            cluster.start()
            cluster.wait_answering()
            yield cluster
    finally:
        end_epmd(port)


@pytest.fixture
def cluster(shared: UserCluster, request: pytest.FixtureRequest) -> UserCluster:
    """Two nodes with users of their own, RUNNING and linked. Each test leaves them like that."""
    request.node.user_properties.append(("otp", FIRST[0].stands_for))
    shared.wait_running()
    shared.wait_meshed()
    shared.wait_answering()
    return shared


CAPABLE = pytest.mark.parametrize("shared", [ORCHESTRATOR], indirect=True)
"""For what root, whom nothing is forbidden, would show less of."""


# ---- whom they run as --------------------------------------------------------------------------------------


def status_lines(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: " ".join(rest.split()) for key, _, rest in (line.partition(":") for line in lines)}


def test_a_node_is_its_user_with_its_groups_and_without_any_capability(cluster: UserCluster) -> None:
    for name in cluster.names:
        status = cluster.status_of(name)
        assert (status["user"], status["guard"]) == (NODE_USERS[name], "proven")
        lines, expected = status_lines(cluster.pid(name)), str(uid(NODE_USERS[name]))
        assert set(lines["Uid"].split()) == {expected}
        assert len(set(lines["Gid"].split())) == 1 and set(lines["Groups"].split()) == set(
            lines["Gid"].split()
        )
        for each in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(lines[each], 16) == 0, each
        assert lines["NoNewPrivs"] == ("0" if cluster.user == "root" else "1")  # as it was given
        assert cluster.erl(name, 'os:getenv("USER")') == f'"{NODE_USERS[name]}"'
        assert cluster.erl(name, "element(2, file:get_cwd())") == f'"{cluster.node_directory(name)}"'


@pytest.mark.skipif(len(OTPS) < 2, reason="there is one release")
def test_newer_releases_run_as_users_too(
    open_beams: Path, agent_ebin: Path, request: pytest.FixtureRequest
) -> None:
    otps = {"a": OTPS[1], "b": OTPS[-1]}
    request.node.user_properties.extend(("otp", otp.stands_for) for otp in otps.values())
    with UserCluster(otps, open_beams) as cluster:
        cluster.start()
        cluster.wait_answering()
        for name in cluster.names:
            assert status_lines(cluster.pid(name))["Uid"].split()[0] == str(uid(NODE_USERS[name]))
            assert cluster.status_of(name)["guard"] == "proven"
            key = string(str(cluster.state / "ca/key.pem"))
            assert cluster.erl(name, f"file:read_file({key})") == "{error,eacces}"
        mark = cluster.node_directory("a") / "policy.mark"
        cluster.distsec("allow", "c@127.0.0.1")  # each raises its mark before it acknowledges
        assert mark.read_bytes().split()[2] == b"%d" % cluster.status()["policy_generation"]


# ---- what a node cannot reach ------------------------------------------------------------------------------

UNREADABLE = (
    "ca",
    "ca/key.pem",
    "ca/policy.key",
    "ca/cookie.secret",
    "ca/pairs/a@127.0.0.1.pem",
    "policy.overlay",
    "contacts.json",
    "orchestrator.json",
    "lock",
    "nodes/b@127.0.0.1/key.pem",
    "nodes/b@127.0.0.1/agent.key",
    "nodes/b@127.0.0.1/cookie.term",
    "nodes/b@127.0.0.1/policy.mark",
    "nodes/b@127.0.0.1/log/output.log",
    "nodes/a@127.0.0.1/run.json",
    "nodes/a@127.0.0.1/incoming/key.pem",
    "nodes/a@127.0.0.1/log/output.log",
)


def test_the_keys_and_records_of_others_are_closed_to_a_node(cluster: UserCluster) -> None:
    for relative in UNREADABLE:
        place = cluster.state / relative
        if "incoming" not in place.parts:  # some are written a moment after the nodes run
            cluster.wait(place.exists, f"{place} to be written")
        path = string(str(place))
        assert cluster.erl("a", f"file:read_file({path})") == "{error,eacces}", relative
    for relative in ("", "nodes", "ca", "nodes/b@127.0.0.1"):
        path = string(str(cluster.state / relative))
        assert cluster.erl("a", f"file:list_dir({path})") == "{error,eacces}", relative
    assert cluster.erl("a", f"element(1, file:read_file({own(cluster, 'key.pem')}))") == "ok"


def own(cluster: UserCluster, name: str) -> str:
    return string(str(cluster.node_directory("a") / name))


def test_a_node_cannot_change_or_replace_what_the_orchestrator_wrote_for_it(cluster: UserCluster) -> None:
    evil = own(cluster, "evil")
    assert cluster.erl("a", f'file:write_file({evil}, "x")') == "ok"  # it may make files there
    for name in ("policy.term", "key.pem", "guard.term", "run.json", "agent.sock", "log"):
        path = own(cluster, name)
        assert cluster.erl("a", f"file:rename({evil}, {path})") in {"{error,eperm}", "{error,eisdir}"}, name
        assert cluster.erl("a", f"file:delete({path})") == "{error,eperm}", name
        assert cluster.erl("a", f"file:rename({path}, {evil})") == "{error,eperm}", name
    for name in ("policy.term", "guard.term", "cookie.term"):
        assert cluster.erl("a", f'file:write_file({own(cluster, name)}, "x")') == "{error,eacces}", name
    assert cluster.erl("a", f"file:delete({evil})") == "ok"


def test_the_sockets_of_orchestrator_and_other_nodes_are_closed_to_a_node(cluster: UserCluster) -> None:
    for path in (cluster.state / "control.sock", cluster.node_directory("b") / "agent.sock"):
        connected = cluster.erl("a", f"gen_tcp:connect({{local,{string(str(path))}}}, 0, [local])")
        assert connected == "{error,eacces}", path


TRACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, int(sys.argv[1]), None, None), os.strerror(ctypes.get_errno()))
"""


def test_no_other_process_can_be_traced_looked_into_or_ended_from_a_node(cluster: UserCluster) -> None:
    assert cluster.orchestrator is not None
    (cluster.directory / "trace.py").write_text(TRACE)
    (cluster.directory / "trace.py").chmod(0o644)
    for pid in (cluster.orchestrator.pid, cluster.pid("b")):
        for name in ("environ", "mem", "maps", "fd/0", "cwd"):
            answer = cluster.erl("a", f'file:read_file("/proc/{pid}/{name}")')
            assert answer == "{error,eacces}", (name, answer)
        traced = cluster.erl("a", f'os:cmd("/usr/bin/python3 {cluster.directory}/trace.py {pid} 2>&1")')
        assert traced == '"-1 Operation not permitted\\n"', traced
        killed = cluster.erl("a", f'os:cmd("kill -9 {pid} 2>&1; echo $?")')
        assert "not permitted" in killed and killed.endswith('1\\n"'), killed
    cluster.wait_running()


# ---- and all the rest works --------------------------------------------------------------------------------


def test_nodes_are_adopted_after_a_kill_stopped_and_started_again(cluster: UserCluster) -> None:
    before = {name: cluster.pid(name) for name in cluster.names}
    cluster.kill()
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()
    assert {name: cluster.pid(name) for name in cluster.names} == before
    # An agent that was silent for too long, as on a busy machine, is proven once more when it is back.
    cluster.wait(
        lambda: {each["guard"] for each in cluster.status()["nodes"]} == {"proven"}, "all to be proven"
    )
    cluster.distsec("restart", "a@127.0.0.1")
    cluster.wait_answering("a")
    assert cluster.pid("a") != before["a"]
    os.kill(cluster.pid("b"), 9)
    cluster.wait_event("NodeStateChanged", node="b@127.0.0.1", reason="exited")
    cluster.wait_running("b")


def test_a_shell_reaches_a_node_and_check_finds_nothing_wrong_with_the_files(cluster: UserCluster) -> None:
    answer = cluster.distsec("shell", "a@127.0.0.1", "--eval", "node()")
    assert answer.stdout.strip() == "'a@127.0.0.1'"
    found = json.loads(cluster.distsec("check", "--json", check=False).stdout)["findings"]
    about = ("file", "directory", "secret", "parent", "shared", "node_user")
    assert [each for each in found if each["code"].startswith(about) and each["severity"] != "info"] == []


@CAPABLE
def test_they_register_with_an_epmd_that_runs_as_one_of_them(cluster: UserCluster) -> None:
    port = int(cluster.table("a")["environment"]["ERL_EPMD_PORT"])
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered")
    (epmd,) = holders(port)
    lines = status_lines(epmd)
    assert set(lines["Uid"].split()) <= {str(uid(user)) for user in NODE_USERS.values()}
    assert len(set(lines["Uid"].split())) == len(set(lines["Gid"].split() + lines["Groups"].split())) == 1
    assert int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0

    end_epmd(port)
    cluster.distsec("restart", "a@127.0.0.1")  # which sees to another one
    cluster.wait_running()
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered again")


@CAPABLE
def test_what_an_operator_or_a_helper_brings_is_handed_to_the_node(cluster: UserCluster) -> None:
    leaf = cluster.leaf("a")
    for path in (leaf.certificate, leaf.key):
        os.chown(path, uid(cluster.user), -1)
    cluster.distsec(
        *("certs", "import", "--node", "a@127.0.0.1"),
        *("--certificate", str(leaf.certificate), "--key", str(leaf.key)),
    )
    assert cluster.erl("a", f"element(1, file:read_file({own(cluster, 'key.pem')}))") == "ok"
    serial = cluster.status_of("a")["certificate"]["serial"]
    dropped, incoming = cluster.leaf("a"), cluster.node_directory("a") / "incoming"
    for name, path in (("key.pem", dropped.key), ("certificate.pem", dropped.certificate)):
        (incoming / f"{name}.new").write_bytes(path.read_bytes())
        (incoming / f"{name}.new").chmod(0o600)
        os.chown(incoming / f"{name}.new", uid(cluster.user), -1)
        (incoming / f"{name}.new").rename(incoming / name)
    cluster.wait_event("CertificateRenewed", node="a@127.0.0.1", reason="dropped")
    assert cluster.status_of("a")["certificate"]["serial"] != serial
    cluster.wait_meshed()


@CAPABLE
def test_certificates_cookies_and_the_ca_are_renewed_under_them(cluster: UserCluster) -> None:
    pids = {name: cluster.pid(name) for name in cluster.names}
    serials = {each["name"]: each["certificate"]["serial"] for each in cluster.status()["nodes"]}
    cluster.distsec("certs", "renew", "--all")
    for each in cluster.status()["nodes"]:
        assert each["certificate"]["serial"] != serials[each["name"]]
    cluster.distsec("cookie", "rotate")
    for phase in ("prepare", "activate", "prune"):
        cluster.distsec("certs", "rotate-ca", phase)
    assert {name: cluster.pid(name) for name in cluster.names} == pids
    key = cluster.node_directory("a") / "key.pem"
    assert mode(key) == 0o640 and key.stat().st_uid == uid(cluster.user)
    cluster.wait_meshed()


@CAPABLE
def test_a_denial_ends_the_link_and_a_compromised_node_is_keyed_anew(cluster: UserCluster) -> None:
    cluster.distsec("deny", "b@127.0.0.1")
    cluster.wait(lambda: ("a", "b") not in cluster.links(), "the end of the link")
    cluster.distsec("allow", "b@127.0.0.1")
    cluster.wait_meshed()
    before = cluster.pid("b")
    cluster.distsec("deny", "a@127.0.0.1", "--compromised")
    cluster.wait(lambda: not cluster.status_of("b")["tainted"], "b to be keyed anew", 60)
    cluster.wait_running("b")
    cluster.wait_answering("b")
    assert cluster.pid("b") != before
    cluster.distsec("allow", "a@127.0.0.1")
    cluster.wait(lambda: not cluster.status_of("a")["tainted"], "a to be keyed anew", 60)
    cluster.distsec("start", "a@127.0.0.1")
    cluster.wait_meshed()


# ---- root at a terminal ------------------------------------------------------------------------------------


@CAPABLE
def test_a_tool_that_root_runs_has_a_terminal_of_its_own_and_ends_with_root_s(cluster: UserCluster) -> None:
    with at_root_s_terminal(cluster, "exec", "a@127.0.0.1", "--", "/bin/sh", PS1="tool$ ") as typed:
        typed.wait("tool$ ")
        typed.type(f"id -un; : <{typed.name}\r")
        typed.wait(NODE_USERS["a"])
        typed.wait("Permission denied")
        typed.wait("tool$ ")
        ask = "io:format([126,112,126,110],[net_adm:ping('a@127.0.0.1')]),halt()."
        erl = [FIRST[0].erl, "-noinput", "-name", "tool@127.0.0.1", "-eval", ask]
        typed.type(f"{shlex.join(erl)}; echo on $$.\r")
        typed.wait("pong")
        typed.wait("\non ")
        at = typed.text.rindex("\non ") + 4
        typed.wait(".")
        tool = int(typed.text[at:].partition(".")[0])
        assert devices(tool) and typed.device not in devices(tool)
        typed.signal(signal.SIGKILL)
        assert typed.exit_code() == -signal.SIGKILL
        cluster.wait(lambda: ended(tool), "the end of the tool", 60)
    cluster.wait(lambda: not list((cluster.state / "shells").iterdir()), "its key to go", 60)
    cluster.wait_event("ShellDetached", node="a@127.0.0.1", peer="tool@127.0.0.1")
    with at_root_s_terminal(cluster, "exec", "a@127.0.0.1", "--", "/no/such/tool") as typed:
        typed.wait("distsec: /no/such/tool: there is no such program")
        assert typed.exit_code() == 72


@CAPABLE
def test_so_has_a_shell_of_root_s(cluster: UserCluster) -> None:
    with at_root_s_terminal(cluster, "shell", "a@127.0.0.1", TERM="xterm") as typed:
        typed.wait("(a@127.0.0.1)1> ")
        typed.type("6 * 7.\r")
        typed.wait("42")
        vms = [pid for pid in proc.tree(typed.pid) if "beam" in command_name(pid)]
        assert [int(status_lines(pid)["Uid"].split()[0]) for pid in vms] == [uid(ORCHESTRATOR)]
        assert devices(vms[0]) and typed.device not in devices(vms[0])
        typed.resize(40, 101)
        # Keys may come before the window's new size does, which is told by a signal.
        wide = "case io:columns() of {ok,101} -> [$w,$i,$d,$e]; _ -> receive after 50 -> W() end end"
        typed.type(f"(fun W() -> {wide} end)().\r")
        typed.wait('"wide"')
        typed.type("register(test_waits, self()), receive never -> ok end.\r")
        cluster.wait(lambda: cluster.erl("a", "whereis(test_waits)") != "undefined", "the evaluation", 60)
        typed.type("\x03")
        typed.wait("4> ")
        typed.type("q().\r")
        assert typed.exit_code() == 0
        assert typed.as_before
    cluster.wait(lambda: not list((cluster.state / "shells").iterdir()), "its key to go", 60)


def command_name(pid: int) -> str:
    """Empty where it has ended meanwhile: a VM starts helpers that are gone at once."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def devices(pid: int) -> set[int]:
    """The terminals that a process has. What it opens and closes meanwhile, as a VM does that loads code, is
    none.
    """
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(each.readlink()).startswith("/dev/pts/"):
                found.add(each.stat().st_rdev)
    return found


def at_root_s_terminal(cluster: UserCluster, *words: str, **variables: str) -> Terminal:
    """Root believes a configuration of its own alone."""
    own = cluster.directory / "root.toml"
    own.write_bytes(cluster.config.read_bytes())
    environment = cluster.environment(DISTSEC_CONFIG=str(own), **variables)
    return Terminal([*cluster.program, *words], environment=environment)


# ---- a node that wants to do harm --------------------------------------------------------------------------

PLANT = """
D = {directory},
P = fun(N) -> D ++ "/" ++ N end,
Make = [
  fun(F) -> file:make_symlink("/etc/passwd", F) end,
  fun(F) -> os:cmd("mkfifo " ++ F) end,
  fun(F) -> file:make_dir(F), file:write_file(F ++ "/x", "x"), file:change_mode(F, 8#000) end,
  fun(F) -> file:write_file(F, binary:copy(<<"x">>, 5000000)) end],
Names = ["run.json", "start.json", "taken.json", "probes.json", "next.pem", "guard.refused",
         "guard.refused.new", "policy.mark.new", "log/output.log.1", "log/output.log.new", "incoming",
         ".distsec-new-0", "log/erl_crash.dump", "agent.sock"],
[begin file:delete(P(N)), (lists:nth(1 + (I rem 4), Make))(P(N)) end
 || {{I, N}} <- lists:zip(lists:seq({seed}, {seed} + length(Names) - 1), Names)],
file:delete(P("policy.mark")), ok
"""


def test_what_a_node_puts_in_the_place_of_our_files_stops_nobody(cluster: UserCluster) -> None:
    directory, first = cluster.node_directory("a"), cluster.pid("a")
    passwd = Path("/etc/passwd").read_bytes()
    # What is ours cannot be taken away by the node; so that the names are free, it is taken away for it.
    cluster.kill()
    for name in ("run.json", "start.json", "probes.json", "agent.sock"):
        (directory / name).unlink(missing_ok=True)
    (directory / "incoming").rename(directory / "was")
    plant = PLANT.format(directory=string(str(directory)), seed=0 if cluster.user == "root" else 2)
    assert cluster.erl("a", plant, seconds=30) == "ok"
    cluster.run()
    cluster.wait_running("b", "a")
    cluster.wait_answering("a")
    assert cluster.pid("a") != first, "without its record it is ended and started again"
    assert json.loads((directory / "run.json").read_bytes())["pid"] == cluster.pid("a")
    assert cluster.status_of("a")["guard"] == "proven"
    assert Path("/etc/passwd").read_bytes() == passwd
    cluster.distsec("certs", "renew", "a@127.0.0.1")
    cluster.wait_meshed()


# ---- where it cannot switch, and moving --------------------------------------------------------------------


def test_an_orchestrator_that_may_not_switch_says_so_and_starts_nothing(
    open_beams: Path, agent_ebin: Path
) -> None:
    three = ("setuid", "setgid", "kill")
    with UserCluster(FIRST[0], open_beams, ["a"], orchestrator=ORCHESTRATOR, capabilities=three) as cluster:
        cluster.init()
        cluster.run()
        assert cluster.orchestrator is not None
        assert cluster.orchestrator.wait(60) == 77
        line = cluster.orchestrator_lines()[-1]
        assert "(lacks CAP_CHOWN)" in line and "AmbientCapabilities=" in line
        assert cluster.processes() == []


def test_users_that_are_nobody_or_root_are_refused_before_anything_starts(
    open_beams: Path, agent_ebin: Path
) -> None:
    with UserCluster(FIRST[0], open_beams) as cluster:
        cluster.table("a")["user"], cluster.table("b")["user"] = "nobody-here", "root"
        cluster.init()
        cluster.run()
        assert cluster.orchestrator is not None
        assert cluster.orchestrator.wait(60) == 78
        first, second = cluster.orchestrator_lines()[-2:]
        assert "nodes[0].user: there is no user nobody-here" in first
        assert "nodes[1].user: root is root" in second
        assert cluster.processes() == []


def test_an_existing_state_moves_to_a_user_to_another_and_back(open_beams: Path, agent_ebin: Path) -> None:
    with UserCluster(FIRST[0], open_beams, ["a"]) as cluster:
        before, directory = 0, cluster.node_directory("a")
        for user in (None, "daemon", "games", None):
            cluster.table("a").pop("user", None)
            cluster.table("a").update({} if user is None else {"user": user})
            (cluster.directory / "a.sock").unlink(missing_ok=True)  # the tests' own, and the old user's
            if user == "games":  # under an orchestrator that runs
                cluster.write()
                cluster.signal(signal.SIGHUP)
                cluster.wait_event("ConfigurationReloaded", detail="restarted a@127.0.0.1")
            else:  # the node of before was left running, as somebody else
                if cluster.orchestrator is not None:
                    assert cluster.terminate() == 0
                cluster.init()
                cluster.run()
            cluster.wait(partial(ended, before), "the end of the node of before", 60)
            cluster.wait_running()
            cluster.wait_answering()
            pid, owner = cluster.pid("a"), uid(user or "root")
            assert pid != before and set(status_lines(pid)["Uid"].split()) == {str(owner)}
            assert mode(directory) == (0o1770 if user else 0o700)
            assert mode(directory / "key.pem") == (0o640 if user else 0o600)
            assert mode(cluster.state) == (0o711 if user else 0o700)
            assert (directory / "policy.mark").stat().st_uid == owner
            cluster.wait(lambda: cluster.status()["healthy"], "all to be well")
            before = pid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ended(pid: int) -> bool:
    """Also a zombie, whose new parent takes its time."""
    try:
        return pid == 0 or status_lines(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True
