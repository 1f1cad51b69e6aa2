"""The service in a booted systemd: start, order, reload, restart, kills, sandbox, journal, secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import ROOT, Otp
from tests.systemd.machine import SHARE, Machine
from tests.systemd.service import (
    ADDRESS,
    ADDRESS_UNIT,
    CONFIG,
    CREDENTIAL,
    NODES,
    Service,
    assert_untouched,
    configuration,
    since,
)
from tests.waiting import OutOfTime, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first one boots the machine

A, B = NODES
PASSPHRASE = "correct horse battery"
DROP_IN = "/run/systemd/system/distsec.service.d/test.conf"

DEPENDENT = """\
# A service that needs the cluster: it asks once, and what it saw stays in %s.
[Unit]
Requires=distsec.service
After=distsec.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'distsec status --json >%s/seen'
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Service]:
    """Switched on with distsec and a service that needs it enabled, as after a restart of the host."""
    machine = Machine(installed)
    machine.write(CONFIG, configuration())
    machine.write("/etc/systemd/system/late-address.service", ADDRESS_UNIT)
    machine.write("/etc/systemd/system/dependent.service", DEPENDENT % (SHARE, SHARE))
    machine.enable("distsec.service", "dependent.service")
    machine.enable("late-address.service", target="network-online.target")
    with machine:
        yield Service(machine)


@pytest.fixture
def service(booted: Service) -> Service:
    """The cluster is up, whatever the test before left."""
    booted.up()
    return booted


# ---- start


def test_at_boot_whoever_comes_after_it_finds_the_nodes_up(booted: Service) -> None:
    machine = booted.machine
    seen = json.loads((machine.share / "seen").read_text())
    assert {node["name"]: node["state"] for node in seen["nodes"]} == dict.fromkeys(NODES, "RUNNING")

    moments = {
        unit: int(machine.show(unit, "ActiveEnterTimestampMonotonic"))
        for unit in ("network-online.target", "time-sync.target", "distsec.service", "dependent.service")
    }
    began = int(machine.show("distsec.service", "ExecMainStartTimestampMonotonic"))
    assert 0 < moments["network-online.target"] < began  # one node's address is there only then
    assert began < moments["distsec.service"] < moments["dependent.service"]
    assert "time-sync.target" in machine.show("distsec.service", "After").split()


def test_start_returns_when_the_nodes_are_up_and_systemctl_tells_how_they_are(service: Service) -> None:
    machine = service.machine
    machine.run("systemctl", "stop", service.unit)
    machine.run("pkill", "-KILL", "-U", "distsec")  # all that the machine has of them

    machine.run("systemctl", "start", service.unit)

    assert [node["state"] for node in service.status()["nodes"]] == ["RUNNING", "RUNNING"]
    wait_until(lambda: "2 nodes RUNNING, 0 violations" in machine.show(service.unit, "StatusText"), "STATUS")
    shown = machine.run("systemctl", "status", "--no-pager", service.unit).stdout
    assert re.search(r"Active: active \(running\)", shown)
    assert re.search(r"Status: \"2 nodes RUNNING, 0 violations", shown)


def test_root_and_nobody_else_has_a_word(service: Service) -> None:
    assert service.distsec("status").returncode == 0
    refused = service.machine.run(
        "runuser", "-u", "daemon", "--", "distsec", "status", "-c", CONFIG, check=False
    )
    assert refused.returncode not in {0, 1, 2}


# ---- reload, restart, kills


def test_reload_takes_a_new_configuration_and_is_seen_as_one(service: Service) -> None:
    machine, cursor, main = service.machine, since(service.machine), service.main_pid()
    pids = service.pids()
    machine.write(CONFIG, configuration(allowed=["c@127.0.0.1"]))
    try:
        reload(service)
        wait_until(lambda: "Reloaded distsec.service" in told_by_systemd(service, cursor), "the end")
        told = told_by_systemd(service, cursor)
        assert told.index("Reloading distsec.service") < told.index("Reloaded distsec.service")
        wait_until(lambda: machine.show(service.unit, "SubState") == "running", "systemd to see its end")

        machine.write(CONFIG, "[cluster\n")
        machine.run("systemctl", "reload", service.unit)
        refused = "reload refused (rejected): the old configuration stays in force: "
        wait_until(lambda: refused in machine.messages(*cursor, "SYSLOG_IDENTIFIER=distsec"), "the refusal")
        [why] = [line for line in machine.messages(*cursor).splitlines() if "distsec.toml: " in line]
        assert refused in why, "it is told once"
    finally:
        machine.write(CONFIG, configuration())
    assert machine.show(service.unit, "ActiveState") == "active"
    assert (service.main_pid(), service.pids()) == (main, pids)
    reload(service)


def reload(service: Service) -> str:
    """Returns when the configuration is in force, with what systemctl had to say. It may itself return
    before: kill(1) has ended, and systemd has heard of no reload yet.
    """
    machine = service.machine
    done = [*since(machine), "DISTSEC_EVENT=ConfigurationReloaded", "DISTSEC_RESULT=allow"]
    said = machine.run("systemctl", "reload", service.unit).stderr
    try:
        wait_until(lambda: machine.journal(*done), "the configuration to be reloaded", poll_seconds=0.2)
    except OutOfTime as error:
        raise OutOfTime(f"{error}\n{machine.messages('-n', '40')}") from None
    return said


def told_by_systemd(service: Service, cursor: list[str]) -> str:
    return service.machine.messages(*cursor, f"UNIT={service.unit}")


def test_a_policy_is_taken_and_kept_by_nodes_in_the_sandbox(service: Service) -> None:
    def marks() -> set[str]:
        return set(service.machine.shell("cat /var/lib/distsec/nodes/*/policy.mark").splitlines())

    before = marks()
    service.distsec("allow", "d@127.0.0.1")
    allowed = marks()
    service.distsec("deny", "d@127.0.0.1")
    assert len(before) == len(allowed) == len(marks()) == 1  # both nodes have the same
    assert before != allowed != marks()


def test_a_restart_is_not_noticed_by_the_cluster(service: Service) -> None:
    machine, cursor = service.machine, since(service.machine)
    pids, links, main = service.pids(), service.links(), service.main_pid()
    service.inside(A, "echo kept >/tmp/of-a-node; echo kept >/dev/shm/of-a-node")

    machine.run("systemctl", "restart", service.unit)

    assert service.main_pid() != main
    assert [node["state"] for node in service.status()["nodes"]] == ["RUNNING", "RUNNING"]
    assert_untouched(service, cursor, pids, links)
    assert service.inside(A, "cat /tmp/of-a-node /dev/shm/of-a-node") == "kept\nkept\n"
    assert machine.show(service.nodes_unit, "ActiveState") == "active"


def test_stop_leaves_the_nodes_and_the_next_start_takes_them_over(service: Service) -> None:
    machine, cursor = service.machine, since(service.machine)
    pids, links = service.pids(), service.links()
    machine.run("systemctl", "stop", service.unit)
    assert machine.show(service.unit, "ActiveState") == "inactive"
    assert machine.show(service.unit, "Result") == "success"
    for pid in pids.values():
        machine.run("kill", "-0", str(pid))
    machine.run("systemctl", "start", service.unit)
    assert_untouched(service, cursor, pids, links)


def test_after_kill_9_it_is_back_by_itself_with_the_same_nodes(service: Service) -> None:
    machine, cursor = service.machine, since(service.machine)
    pids, links, main = service.pids(), service.links(), service.main_pid()
    machine.run("kill", "-KILL", str(main))
    wait_until(lambda: service.main_pid() not in {0, main}, "another one")
    assert_untouched(service, cursor, pids, links)


def test_one_that_hangs_is_killed_by_the_watchdog_and_its_nodes_are_taken_over(service: Service) -> None:
    machine = service.machine
    machine.write(DROP_IN, "[Service]\nWatchdogSec=8\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", service.unit)
        service.wait_well()
        cursor = since(machine)
        pids, links, main = service.pids(), service.links(), service.main_pid()

        machine.run("kill", "-STOP", str(main))

        wait_until(lambda: service.main_pid() not in {0, main}, "another one")
        assert "Failed with result 'watchdog'" in told_by_systemd(service, cursor)
        assert_untouched(service, cursor, pids, links)
    finally:
        machine.run("rm", DROP_IN)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", service.unit)


def test_its_nodes_are_stopped_and_started_with_their_own_unit(service: Service) -> None:
    machine, pids = service.machine, service.pids()
    machine.run("systemctl", "stop", service.nodes_unit)
    assert [node["state"] for node in service.status()["nodes"]] == ["STOPPED", "STOPPED"]
    service.wait_ended(pids.values())
    machine.run("systemctl", "start", service.nodes_unit)
    assert [node["state"] for node in service.status()["nodes"]] == ["RUNNING", "RUNNING"]


# ---- the sandbox, seen from a node


def test_a_node_has_no_capability_and_writes_nowhere_but_where_it_may(service: Service) -> None:
    seen = service.inside(A, SANDBOX_LOOK)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{name}:\s*0+$", seen, re.MULTILINE), name
    assert re.search(r"^NoNewPrivs:\s*1$", seen, re.MULTILINE)
    assert re.search(r"^Seccomp:\s*2$", seen, re.MULTILINE)
    assert "umask 0077" in seen
    for place in ("/etc", "/usr", "/var/lib", "/opt"):
        assert f"cannot touch '{place}/x': Read-only file system" in seen, seen
    for place in ("/tmp", "/var/tmp", "/var/lib/distsec", "/var/log/distsec", "/run/distsec"):
        assert f"written {place}" in seen, seen
    for place in ("/root", "/home"):
        assert f"cannot open directory '{place}': Permission denied" in seen, seen


SANDBOX_LOOK = """\
cat /proc/self/status; echo umask $(umask); ls /root; ls /home
for place in /etc /usr /var/lib /opt /tmp /var/tmp /var/lib/distsec /var/log/distsec /run/distsec; do
    touch $place/x && rm $place/x && echo written $place
done"""


def reach(service: Service, *addresses: str) -> str:
    """Whether a node can dial a listener at each: a list of `ok` and errors."""
    return service.evaluate(
        A,
        "lists:map(fun(A) -> {ok, I} = inet:parse_address(A), {ok, L} = gen_tcp:listen(4711, [{ip, I}]), "
        "R = gen_tcp:connect(I, 4711, [], 500), gen_tcp:close(L), "
        f"case R of {{ok, _}} -> ok; {{error, _}} -> closed end end, {json.dumps(addresses)})",
    )


def expect_reached(service: Service, expected: str, *addresses: str) -> None:
    """A node that is busy may miss what is there, and never finds what is not."""
    wait_until(lambda: reach(service, *addresses) == expected, f"{expected} of {addresses}", poll_seconds=0.2)


def test_only_addresses_of_the_configuration_are_reached_and_a_change_asks_for_a_reload(
    service: Service,
) -> None:
    machine = service.machine
    expect_reached(service, "[ok,ok,closed]", "127.0.0.1", ADDRESS, "10.77.0.3")

    more = '[[peers]]\nname = "c@host.example"\naddress = "10.77.0.3"\nport = 9100\n'
    machine.write(CONFIG, configuration(allowed=["c@host.example"]) + more)
    machine.run("touch", "-d", "+2 seconds", CONFIG)
    try:
        assert machine.show(service.unit, "NeedDaemonReload") == "yes"
        assert "daemon-reload" in reload(service)
        machine.run("systemctl", "daemon-reload")
        expect_reached(service, "[ok]", "10.77.0.3")  # in nodes that run, too
    finally:
        machine.write(CONFIG, configuration())
        machine.run("systemctl", "daemon-reload")
        reload(service)
    assert reach(service, "10.77.0.3") == "[closed]"


def test_the_jit_of_every_release_works_in_the_sandbox(booted: Service, otps: tuple[Otp, ...]) -> None:
    unit = (ROOT / "config/systemd/distsec.service").read_text()
    sandbox = unit[unit.index("CapabilityBoundingSet=") : unit.index("[Install]")]
    kept = [
        line for line in sandbox.splitlines() if "=" in line and line[0] not in "#[" and "Private" not in line
    ]
    options = [
        f"--property={line}" for line in kept if not line.startswith("ProtectHome=")
    ]  # of the tests' own OTP
    for otp in otps:
        done = booted.machine.run(
            *("systemd-run", "--quiet", "--wait", "--pipe", *options, otp.erl, "-noshell", "-eval"),
            'io:format("~s ~s", [erlang:system_info(otp_release), erlang:system_info(emu_flavor)]), halt().',
        )
        assert done.stdout == f"{otp.release} jit"


# ---- journal, secrets, errors


def test_the_journal_has_fields_to_look_for(service: Service) -> None:
    machine = service.machine
    service.distsec("restart", A)
    machine.run("journalctl", "--sync")
    asked = ("journalctl", "-q", "-o", "json", "-t", "distsec")
    found = machine.run(*asked, f"DISTSEC_NODE={A}").stdout
    entries = [json.loads(line) for line in found.splitlines()]
    started = [entry for entry in entries if entry["DISTSEC_EVENT"] == "NodeStarted"]
    assert started and started[0]["_SYSTEMD_UNIT"] == service.unit
    assert all(entry["DISTSEC_NODE"] == A and entry["PRIORITY"] in "0123456" for entry in entries)
    assert not any(str(entry["MESSAGE"]).startswith("{") for entry in entries)  # sentences
    assert machine.run(*asked, f"DISTSEC_NODE={A}x", check=False).stdout == ""


def test_a_sealed_key_is_opened_with_a_credential_and_without_it_the_nodes_run_on(service: Service) -> None:
    machine = service.machine
    machine.run("bash", "-euc", f"umask 077; mkdir -p /etc/credstore; echo '{PASSPHRASE}' >{CREDENTIAL}")
    seal = 'runuser -u distsec -- distsec certs seal -c "$1" --passphrase-fd 3 3<<<"$2"'
    machine.run("bash", "-euc", seal, "seal", CONFIG, PASSPHRASE)
    assert machine.run("ls", "/var/lib/distsec/ca").stdout.split().count("key.sealed") == 1

    machine.run("systemctl", "restart", service.unit)
    service.wait_well()
    assert service.distsec("certs", "renew", A).returncode == 0

    machine.run("mv", CREDENTIAL, f"{CREDENTIAL}.away")
    machine.run("systemctl", "restart", service.unit)
    service.wait_well()
    without = service.distsec("certs", "renew", A, check=False)
    assert without.returncode == 66
    assert PASSPHRASE not in machine.messages() + without.stderr

    machine.run("mv", f"{CREDENTIAL}.away", CREDENTIAL)
    machine.run("systemctl", "restart", service.unit)
    unseal = 'runuser -u distsec -- distsec certs unseal -c "$1" --passphrase-fd 3 3<<<"$2"'
    machine.run("bash", "-euc", unseal, "unseal", CONFIG, PASSPHRASE)
    machine.run("rm", CREDENTIAL)


def test_a_configuration_that_is_no_good_fails_the_unit_at_once_and_says_why(service: Service) -> None:
    machine, cursor = service.machine, since(service.machine)
    machine.run("systemctl", "stop", service.unit)
    machine.write(CONFIG, configuration() + "[cluster2]\n")
    try:
        assert machine.run("systemctl", "start", service.unit, check=False).returncode != 0
        assert machine.show(service.unit, "ExecMainStatus") == "78"
        assert machine.show(service.unit, "NRestarts") == "0"
        assert machine.show(service.unit, "ActiveState") == "failed"
        machine.run("journalctl", "--sync")  # `status` shows what the journal has, and does not wait for it
        shown = machine.run("systemctl", "status", "--no-pager", "--lines=20", service.unit, check=False)
        reasons = [line for line in shown.stdout.splitlines() if "cluster2" in line]
        assert len([line for line in reasons if "distsec[" in line]) == 1
        assert CONFIG in reasons[-1]
        assert "Traceback" not in machine.messages(*cursor, f"_SYSTEMD_UNIT={service.unit}")
    finally:
        machine.write(CONFIG, configuration())


def test_systemd_finds_nothing_wrong_with_what_is_installed(booted: Service) -> None:
    units = ("distsec.service", "distsec-nodes.service", "distsec@two.service", "distsec-nodes@two.service")
    done = booted.machine.run("systemd-analyze", "verify", *units)
    assert (done.stdout, done.stderr) == ("", "")
