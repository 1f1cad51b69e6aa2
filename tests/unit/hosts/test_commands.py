"""`distsec init --trust`, `export` and `import`, as a person types them; no orchestrator runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner, Result

from distsec.cli.group import distsec
from distsec.config import interfaces
from distsec.errors import NotAcknowledged
from tests.unit.control.fake_orchestrator import running
from tests.unit.hosts.sides import text_of

A, B = "a@192.0.2.1", "b@192.0.2.2"
Type = Callable[..., Result]


def type_in(*words: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(distsec, [str(word) for word in words], prog_name="distsec", input=stdin)


def done(*words: str | Path) -> str:
    result = type_in(*words)
    assert result.exit_code == 0, f"{words}: {result.exit_code}\n{result.output}"
    return result.output


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> object:
    """Directories of two hosts, the second with certificates that the first has signed: three commands."""
    monkeypatch.setattr(interfaces, "addresses_here", lambda: ("127.0.0.1", "192.0.2.1", "192.0.2.2"))
    with TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        first, second = Path(directory) / "first", Path(directory) / "second"
        for path, name in ((first, A), (second, B)):
            path.mkdir()
            (path / "distsec.toml").write_text(text_of("shop", {name: name.partition("@")[2]}))
            (path / "distsec.toml").chmod(0o600)
        done("init", first)
        done("certs", "export", "--ca", "--out", second / "ca.pem", "-c", first / "distsec.toml")
        yield first, second


Hosts = tuple[Path, Path]


def joined(hosts: Hosts) -> Hosts:
    first, second = hosts
    done("init", second, "--trust", second / "ca.pem", "--request", second / "ask.pem")
    signing = ("certs", "sign", second / "ask.pem", "--out", second / "answer.pem", "--yes")
    done(*signing, "-c", first / "distsec.toml")
    done("certs", "renew", "--offline", "--answer", second / "answer.pem", "-c", second / "distsec.toml")
    return hosts


# ---- init --trust


def test_a_further_host_has_the_ca_and_no_key_of_it_and_asks_for_its_certificates(hosts: Hosts) -> None:
    first, second = hosts
    said = done("init", second, "--trust", second / "ca.pem", "--request", second / "ask.pem")
    assert f"certs sign {second / 'ask.pem'} --out answer.pem" in said
    assert f"certs renew --offline --answer answer.pem -c {second / 'distsec.toml'}" in said
    assert (second / "state/ca/certificate.pem").read_bytes() == (
        first / "state/ca/certificate.pem"
    ).read_bytes()
    assert not (second / "state/ca/key.pem").exists()
    assert (second / "ask.pem").read_text().startswith(f"# {B}, key ")


def test_the_name_of_the_cluster_is_that_of_the_ca(hosts: Hosts) -> None:
    _, second = hosts
    (second / "distsec.toml").unlink()
    listens = ("--node", "b@127.0.0.1")
    done("init", second, *listens, "--trust", second / "ca.pem", "--request", second / "ask.pem")
    assert 'name = "shop"' in (second / "distsec.toml").read_text()
    other = type_in("init", second, "--name", "market", "--trust", second / "ca.pem")
    assert other.exit_code == 64


def test_a_ca_of_another_cluster_or_no_ca_is_not_trusted(hosts: Hosts) -> None:
    first, second = hosts
    leaf = first / "state/nodes" / A / "certificate.pem"
    assert type_in("init", second, "--trust", leaf).exit_code == 65
    (second / "junk.pem").write_text("junk")
    assert type_in("init", second, "--trust", second / "junk.pem").exit_code == 65
    text = (second / "distsec.toml").read_text()
    (second / "distsec.toml").write_text(text.replace('"shop"', '"market"'))
    assert type_in("init", second, "--trust", second / "ca.pem").exit_code in (64, 65)
    assert not (second / "state/ca/certificate.pem").exists()


def test_a_host_that_has_a_ca_keeps_it(hosts: Hosts) -> None:
    _, second = hosts
    done("init", second)
    refused = type_in("init", second, "--trust", second / "ca.pem")
    assert refused.exit_code == 64
    assert "there is a CA already" in refused.output


def test_it_may_be_run_again_and_asks_with_the_same_key(hosts: Hosts) -> None:
    _, second = hosts
    words = ("init", second, "--trust", second / "ca.pem", "--request", second / "ask.pem")
    keys = [[line for line in done(*words).splitlines() if " key " in line] for _ in range(2)]
    assert keys[0] == keys[1] != []
    joined(hosts)
    assert "next: distsec run" in done("init", second)


# ---- export and import


def test_what_is_exported_is_shown_listed_and_taken_back(hosts: Hosts) -> None:
    first, second = joined(hosts)
    document = second / "there.json"
    said = done("export", "--host", "there", "--out", document, "-c", second / "distsec.toml")
    assert f"next: on each other host: distsec import {document}" in said
    here = ("-c", first / "distsec.toml")
    shown = done("import", "--dry-run", document, *here)
    assert f"+ {B}  192.0.2.2:9100" in shown
    assert "none; `distsec export`" in done("import", "--list", *here)
    unasked = type_in("import", document, *here)
    assert unasked.exit_code == 64 and "add --yes" in unasked.output
    assert json.loads(done("import", "--list", "--json", *here)) == {"schema": 1, "hosts": []}

    assert "no orchestrator runs: it counts when one does" in done("import", "--yes", document, *here)
    listed = json.loads(done("import", "--list", "--json", *here))
    assert [host["host"] for host in listed["hosts"]] == ["there"]
    assert listed["hosts"][0]["nodes"] == [{"name": B, "address": "192.0.2.2", "port": 9100}]
    assert f"{B}  192.0.2.2:9100" in done("import", "--list", *here)
    assert "nothing new" in done("import", "--yes", document, *here)

    assert f"- {B}" in done("import", "--forget", "there", "--yes", *here)
    assert type_in("import", "--forget", "there", "--yes", *here).exit_code == 68


def test_an_import_that_a_node_has_not_acknowledged_is_kept_and_not_done(hosts: Hosts) -> None:
    first, second = joined(hosts)
    document = second / "there.json"
    done("export", "--host", "there", "--out", document, "-c", second / "distsec.toml")
    words = ("--yes", "-c", first / "distsec.toml")
    with running(first / "state") as orchestrator:
        orchestrator.fake.reloaded = {"missing": [A]}
        late = type_in("import", document, *words)
        assert late.exit_code == NotAcknowledged.exit_code
        assert late.stderr.count("\n") == 1
        assert f"it is kept, but {A} has not acknowledged it" in late.stderr
        late = type_in("import", "--json", document, *words)
        assert late.exit_code == NotAcknowledged.exit_code
        assert json.loads(late.stdout)["missing"] == [A]

        orchestrator.fake.reloaded = {"missing": []}
        assert "nothing new" in done("import", document, *words)
        orchestrator.fake.reloaded = {"missing": [A]}
        late = type_in("import", "--forget", "there", *words)
        assert (late.exit_code, "stop them if that cannot wait" in late.stderr) == (75, True)
    listed = done("import", "--list", "--json", "-c", first / "distsec.toml")
    assert json.loads(listed)["hosts"] == []


def test_a_document_may_come_by_a_pipe(hosts: Hosts) -> None:
    first, second = joined(hosts)
    document = CliRunner().invoke(distsec, ["export", "--host", "there", "-c", str(second / "distsec.toml")])
    assert document.exit_code == 0
    here = ("-c", first / "distsec.toml")
    taken = type_in("import", "-", "--yes", "--json", *here, stdin=document.stdout_bytes)
    assert taken.exit_code == 0
    answer = json.loads(taken.stdout)
    assert (answer["done"], answer["added"], answer["missing"]) == (True, [B], [])


def test_nothing_but_an_older_document_is_replaced(hosts: Hosts) -> None:
    first, _ = hosts
    config, key = first / "distsec.toml", first / "state/ca/key.pem"
    for precious in (config, key):
        before = precious.read_bytes()
        refused = type_in("export", "--host", "here", "--out", precious, "-c", config)
        assert refused.exit_code == 64
        assert precious.read_bytes() == before
    for _ in range(2):
        done("export", "--host", "here", "--out", first / "here.json", "-c", config)


@pytest.mark.parametrize("name", ["localhost", "", "../up", "a b", "-x", "x" * 64, "h\x1b"])
def test_a_host_has_a_name_that_can_be_told_from_others(hosts: Hosts, name: str) -> None:
    first, _ = hosts
    refused = type_in("export", f"--host={name}", "-c", first / "distsec.toml")
    assert refused.exit_code == (0 if not name else 65)
    assert "\x1b" not in refused.output


@pytest.mark.parametrize(
    "words", [(), ("--list", "--forget", "x"), ("x.json", "--list"), ("x.json", "--forget", "y")]
)
def test_import_does_one_thing(hosts: Hosts, words: tuple[str, ...]) -> None:
    assert type_in("import", *words, "-c", hosts[0] / "distsec.toml").exit_code == 64
