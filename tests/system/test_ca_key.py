"""The CA's key sealed, and elsewhere: what goes on without it, what is said, and that it comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND, Cluster, free_ports
from tests.system.of_module import of_module
from tests.system.processes import belonging_to
from tests.system.secrets import contents

PASSPHRASE = "correct horse battery staple"


otp = of_module(OTPS[:1])
"""One release: the CA's key is the orchestrator's, and no node ever sees it."""


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams, ["a", "b"]) as cluster:
        give_passphrase(cluster, PASSPHRASE)
        cluster.settings["certificates"] = {"ca": {"passphrase_file": "passphrase"}}
        cluster.write()
        cluster.distsec("init", str(cluster.directory), "--seal")
        cluster.run()
        cluster.wait_running()
        cluster.wait_meshed()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Two nodes, RUNNING and linked; the key sealed, the passphrase in its file. Each test leaves it so."""
    yield shared
    give_passphrase(shared, PASSPHRASE)
    with contextlib.suppress(FileNotFoundError):
        shutil.move(shared.directory / "vault" / "ca" / "key.sealed", shared.state / "ca" / "key.sealed")


def give_passphrase(cluster: Cluster, text: str | None) -> None:
    path = cluster.directory / "passphrase"
    if text is None:
        path.unlink()
        return
    new = path.with_suffix(".new")
    new.write_text(f"{text}\n")
    new.chmod(0o600)
    new.replace(path)  # whoever reads it meanwhile finds one whole, that others cannot reach


def restart_orchestrator(cluster: Cluster) -> None:
    """The nodes are left as they are."""
    cluster.terminate()
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()


def pids(cluster: Cluster) -> dict[str, int]:
    return {node["name"]: node["pid"] for node in cluster.status()["nodes"]}


def serials(cluster: Cluster) -> dict[str, str]:
    return {node["name"]: node["certificate"]["serial"] for node in cluster.status()["nodes"]}


def lines(cluster: Cluster, text: str) -> list[str]:
    return [line for line in cluster.orchestrator_lines() if text in line]


def test_with_its_passphrase_a_sealed_key_issues_for_shells_and_new_nodes(cluster: Cluster) -> None:
    assert cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().").stdout.strip() == "'a@127.0.0.1'"
    before = serials(cluster)
    cluster.distsec("certs", "renew", "a@127.0.0.1")
    assert [name for name, serial in serials(cluster).items() if serial != before[name]] == ["a@127.0.0.1"]
    (port,) = free_ports(1)
    cluster.names.append("c")
    cluster.ports["c"], cluster.otps["c"] = port, cluster.otps["a"]
    cluster.settings["nodes"].append(cluster._node_table("c"))
    allowed = cluster.settings["security"]["distribution"]["allowed_nodes"]
    allowed.append("c@127.0.0.1")
    cluster.write()
    cluster.signal(signal.SIGHUP)
    cluster.wait_running("c")
    cluster.wait_meshed()
    assert (cluster.state / "ca" / "key.sealed").exists()
    assert not (cluster.state / "ca" / "key.pem").exists()

    cluster.settings["nodes"].remove(cluster.table("c"))
    allowed.remove("c@127.0.0.1")
    cluster.names.remove("c")
    cluster.write()
    cluster.signal(signal.SIGHUP)
    cluster.wait(lambda: len(cluster.status()["nodes"]) == 2, "the removal of c")


def test_the_passphrase_is_in_no_argument_no_environment_no_log_and_no_state(cluster: Cluster) -> None:
    members = belonging_to(cluster.directory)
    assert len(members) >= 3
    for pid in members:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert PASSPHRASE.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    found = [path.name for path, content in contents(cluster.directory) if PASSPHRASE.encode() in content]
    assert found == ["passphrase"]


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "no passphrase: does not exist"), ("another horse battery staple", "does not open it")],
    ids=["none", "wrong"],
)
def test_without_its_passphrase_nodes_run_on_and_whoever_needs_the_key_is_told(
    cluster: Cluster, given: str | None, said: str
) -> None:
    before = pids(cluster)
    give_passphrase(cluster, given)
    told = len(lines(cluster, "no certificate can be issued or renewed here"))
    restart_orchestrator(cluster)
    assert pids(cluster) == before
    cluster.wait(
        lambda: len(lines(cluster, "no certificate can be issued or renewed here")) > told, "the warning"
    )
    assert said in lines(cluster, "no certificate can be issued or renewed here")[-1]

    refused = cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().", check=False)
    assert refused.returncode == 66
    assert said in refused.stderr and "no shell" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    refused = cluster.distsec("certs", "renew", "a@127.0.0.1", check=False)
    assert refused.returncode != 0 and said in refused.stderr

    give_passphrase(cluster, PASSPHRASE)  # no restart: it is asked for again
    assert cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().").stdout.strip() == "'a@127.0.0.1'"


def test_with_a_damaged_key_the_orchestrator_starts_and_revokes_and_whoever_needs_the_key_is_told(
    cluster: Cluster,
) -> None:
    before, said = pids(cluster), "is no sealed key, or a damaged one; restore it from a backup"
    file = cluster.state / "ca" / "key.sealed"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    told = len(lines(cluster, "no certificate can be issued or renewed here"))
    restart_orchestrator(cluster)
    assert pids(cluster) == before
    cluster.wait(
        lambda: len(lines(cluster, "no certificate can be issued or renewed here")) > told, "the warning"
    )
    assert said in lines(cluster, "no certificate can be issued or renewed here")[-1]
    assert cluster.distsec("certs", "revoke", "0a1b").returncode == 0
    for args in (("shell", "a@127.0.0.1", "--eval", "node()."), ("certs", "renew", "a@127.0.0.1")):
        refused = cluster.distsec(*args, check=False)
        assert refused.returncode == 73, refused.stderr
        assert said in refused.stderr

    file.write_bytes(whole)  # no restart
    assert cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().").stdout.strip() == "'a@127.0.0.1'"


def test_a_descriptor_gives_the_passphrase_and_no_node_inherits_it(cluster: Cluster) -> None:
    give_passphrase(cluster, None)
    cluster.terminate()
    assert cluster.distsec("certs", "unseal", check=False).returncode == 66
    readable, writable = os.pipe()
    os.write(writable, PASSPHRASE.encode())
    os.close(writable)
    with cluster.orchestrator_log.open("ab") as output:
        cluster.orchestrator = subprocess.Popen(
            [*COMMAND, "run", "-c", str(cluster.config), "--passphrase-fd", str(readable)],
            cwd=cluster.directory,
            env=cluster.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[readable],
        )
    pipe = Path(f"/proc/self/fd/{readable}").readlink()
    os.close(readable)
    cluster.wait_running()
    cluster.wait_meshed()
    cluster.distsec("restart", "a@127.0.0.1")
    cluster.wait_meshed()
    assert cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().").stdout.strip() == "'a@127.0.0.1'"
    for pid in belonging_to(cluster.directory):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            opened = {path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()}
            assert pipe not in opened
    assert not (cluster.state / "ca" / "key.pem").exists()


def test_a_cluster_whose_key_is_elsewhere_gets_new_certificates_from_there_and_no_link_is_lost(
    cluster: Cluster,
) -> None:
    vault = cluster.directory / "vault"
    (vault / "ca").mkdir(parents=True, mode=0o700)
    vault.chmod(0o700)
    shutil.copy2(cluster.state / "ca" / "certificate.pem", vault / "ca")
    shutil.move(cluster.state / "ca" / "key.sealed", vault / "ca")
    restart_orchestrator(cluster)
    before, running, downs = serials(cluster), pids(cluster), len(cluster.events("NodeDown"))

    refused = cluster.distsec("shell", "a@127.0.0.1", "--eval", "node().", check=False)
    assert refused.returncode == 66 and "not on this host" in refused.stderr
    refused = cluster.distsec("certs", "renew", "a@127.0.0.1", check=False)
    assert refused.returncode != 0
    assert "`distsec certs renew --offline a@127.0.0.1 --out FILE`" in refused.stderr

    cluster.distsec("certs", "renew", "--offline", "a@127.0.0.1", "b@127.0.0.1", "--out", "ask.pem")
    unsure = cluster.distsec("certs", "sign", "ask.pem", "--ca", str(vault), "--out", "x.pem", check=False)
    assert unsure.returncode == 64 and "spiffe://demo/node/127.0.0.1/a" in unsure.stdout
    secret = ("--passphrase-file", str(cluster.directory / "passphrase"))
    cluster.distsec("certs", "sign", "ask.pem", "--ca", str(vault), "--out", "answer.pem", "--yes", *secret)
    done = cluster.distsec("certs", "renew", "--offline", "--answer", "answer.pem")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["a@127.0.0.1", "b@127.0.0.1"]

    after = serials(cluster)
    assert not set(after.values()) & set(before.values())
    cluster.wait(
        lambda: (
            {(node["name"], link["serial"]) for node in cluster.status()["nodes"] for link in node["links"]}
            == {("a@127.0.0.1", after["b@127.0.0.1"]), ("b@127.0.0.1", after["a@127.0.0.1"])}
        ),
        "links with the new certificates",
    )
    assert pids(cluster) == running
    assert len(cluster.events("NodeDown")) == downs
    again = cluster.distsec("certs", "renew", "--offline", "--answer", "answer.pem")
    assert again.stdout.count("was there already") == 2
    cluster.wait(lambda: cluster.status()["healthy"], "all to be well")
