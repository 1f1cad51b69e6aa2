"""`tls init`, `init --seal`, `certs seal`, `unseal`, `sign` and `renew --offline` as they are typed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import Result

from distsec.pki import keyring, sealed
from distsec.pki.authority import CERTIFICATE_FILE, KEY_FILE, SEALED_FILE, Authority
from distsec.pki.issued import issued
from distsec.pki.keyring import Keyring
from distsec.pki.passphrase import from_file
from distsec.pki.store import Store
from tests.system.terminal import Terminal

Type = Callable[..., Result]
COMMAND = [str(Path(sys.executable).parent / "distsec")]
WORD = "correct horse battery staple"
NODES = ("a@127.0.0.1", "b@127.0.0.1")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its least, in this process."""
    cost = sealed.Cost(memory_kib=sealed.LEAST_MEMORY_KIB, iterations=1, lanes=1)
    monkeypatch.setattr(keyring, "seal", lambda key, word, random: sealed.seal(key, word, random, cost))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return passphrase_file(tmp_path / "passphrase", WORD)


def passphrase_file(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def here(tmp_path: Path, type_in: Type) -> Path:
    """A cluster of two with a plain key."""
    made = type_in("init", str(tmp_path / "here"), "--name", "shop", *(f"--node={name}" for name in NODES))
    assert made.exit_code == 0, made.stderr
    return tmp_path / "here"


def can_issue(root: Path, secret: Path | None = None) -> bool:
    ring = Keyring(from_file(secret)) if secret else None
    return bool(Authority.load(Store(root / "state", ring)).private_key())


def in_ca(root: Path) -> set[str]:
    return {f"ca/{path.name}" for path in (root / "state" / "ca").iterdir()}


def test_a_new_cluster_has_a_sealed_key_from_the_first_moment(
    tmp_path: Path, secret: Path, type_in: Type
) -> None:
    made = type_in("init", str(tmp_path / "x"), "--seal", "--passphrase-file", str(secret))
    assert made.exit_code == 0, made.stderr
    assert SEALED_FILE in in_ca(tmp_path / "x") and KEY_FILE not in in_ca(tmp_path / "x")
    assert can_issue(tmp_path / "x", secret)
    again = type_in("init", str(tmp_path / "x"))
    assert again.exit_code == 0, "every node has its certificate, so nobody asks for the passphrase"


def test_a_new_node_in_a_sealed_cluster_wants_the_passphrase(
    tmp_path: Path, secret: Path, type_in: Type
) -> None:
    type_in("init", str(tmp_path / "x"), "--seal", "--passphrase-file", str(secret))
    more = ("init", str(tmp_path / "x"), "--node", "z@127.0.0.1")
    refused = type_in(*more)
    assert refused.exit_code == 66
    [line] = refused.stderr.splitlines()
    assert "no certificate for z@127.0.0.1: the CA's key is sealed, and no passphrase was given" in line
    assert type_in(*more, "--passphrase-file", str(secret)).exit_code == 0


def test_sealing_and_back_and_another_passphrase(
    here: Path, tmp_path: Path, secret: Path, type_in: Type
) -> None:
    config, other = ("-c", str(here / "distsec.toml")), passphrase_file(tmp_path / "other", "x" * 12)
    done = type_in("certs", "seal", "--passphrase-file", str(secret), *config)
    assert (done.exit_code, done.stdout) == (0, f"{here}/state/ca/key.sealed  sealed\n")
    assert "the orchestrator issues nothing until it has the passphrase" in done.stderr
    assert KEY_FILE not in in_ca(here) and can_issue(here, secret)

    for given in ((), ("--passphrase-file", str(secret))):
        again = type_in("certs", "seal", *given, *config)
        assert (again.exit_code, again.stdout) == (0, f"{here}/state/ca/key.sealed  sealed already\n")
    wrong = type_in("certs", "seal", "--passphrase-file", str(other), *config)
    assert (wrong.exit_code, wrong.stdout) == (66, "")
    assert "it is sealed already, and not with this passphrase; another passphrase is set by" in wrong.stderr

    change = ("--change", "--passphrase-file", str(secret), "--new-passphrase-file", str(other))
    assert type_in("certs", "seal", *change, *config).exit_code == 0
    assert type_in("certs", "unseal", "--passphrase-file", str(secret), *config).exit_code == 66
    assert can_issue(here, other)

    done = type_in("certs", "unseal", "--passphrase-file", str(other), "--ca", str(here))
    assert (done.exit_code, done.stdout) == (0, f"{here}/state/ca/key.pem  plain\n")
    assert SEALED_FILE not in in_ca(here) and can_issue(here)


def test_what_the_configuration_names_opens_the_key_too(here: Path, secret: Path, type_in: Type) -> None:
    config = here / "distsec.toml"
    config.write_text(config.read_text() + f'[certificates.ca]\npassphrase_file = "{secret}"\n')
    done = type_in("certs", "seal", "-c", str(config))
    assert (done.exit_code, done.stderr) == (0, "")
    assert can_issue(here, secret)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (
            ("certs", "seal"),
            66,
            "distsec: the CA's key is to be sealed, and no passphrase was given; give it",
        ),
        (("certs", "seal", "--new-passphrase-fd", "9"), 64, "add --change"),
        (("certs", "seal", "--passphrase-fd", "9", "--passphrase-file", "x"), 64, "given twice"),
        (
            ("certs", "seal", "--passphrase-fd", "977"),
            66,
            "descriptor 977: no passphrase: bad file descriptor",
        ),
        (
            ("certs", "seal", "--passphrase-file", "none"),
            66,
            "none: no passphrase: does not exist; name the file",
        ),
        (("certs", "renew", "--offline"), 64, "no node is named"),
        (("certs", "renew", "--offline", "a@127.0.0.1"), 64, "add --out FILE"),
        (("certs", "renew", "--offline", "z@127.0.0.1", "--out", "x"), 68, "no such managed node"),
        (("certs", "renew", "--offline", "a@127.0.0.1", "--answer", "x"), 64, "give --answer FILE alone"),
        (("certs", "renew", "--out", "x"), 64, "add --offline"),
        (("certs", "renew", "--offline", "--answer", "none"), 64, "none: cannot be read: no such file"),
        (("certs", "sign", "none", "--out", "x"), 64, "none: cannot be read: no such file"),
    ],
    ids=range(12),
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    here: Path, type_in: Type, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(here)
    result = type_in(*args, DISTSEC_CONFIG=str(here / "distsec.toml"))
    assert result.exit_code == code, result.stderr
    [line] = result.stderr.splitlines()
    assert said in line
    assert KEY_FILE in in_ca(here) and SEALED_FILE not in in_ca(here)


def test_the_ca_alone_signs_for_a_cluster_that_never_sees_its_key(
    tmp_path: Path, secret: Path, type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vault, here = tmp_path / "vault", tmp_path / "here"
    made = type_in("tls", "init", "vault", "--name", "shop", "--seal", "--passphrase-file", str(secret))
    assert made.exit_code == 0, made.stderr
    assert in_ca(vault) == {SEALED_FILE, CERTIFICATE_FILE}
    assert type_in("tls", "init", "vault", "--name", "shop").stdout.endswith("kept\n")

    Store(tmp_path / "here").create("distsec.toml", b"")
    (here / "distsec.toml").unlink()
    Store(here / "state").create(CERTIFICATE_FILE, (vault / "state" / CERTIFICATE_FILE).read_bytes())
    refused = type_in("init", "here", "--name", "shop", *(f"--node={name}" for name in NODES))
    assert refused.exit_code == 66
    assert f"distsec certs renew --offline {' '.join(NODES)} --out FILE" in refused.stderr

    config = ("-c", str(here / "distsec.toml"))
    asked = type_in("certs", "renew", "--offline", "--all", "--out", "ask.pem", *config)
    assert asked.exit_code == 0, asked.stderr
    keys = [line.split()[-1] for line in asked.stderr.splitlines()[:2]]
    sign = ("certs", "sign", "ask.pem", "--ca", "vault", "--out", "answer.pem")
    unsure = type_in(*sign, "--passphrase-file", str(secret))
    assert unsure.exit_code == 64 and all(key in unsure.stdout for key in keys)
    assert not (tmp_path / "answer.pem").exists()
    assert type_in(*sign, "--yes").exit_code == 66
    assert type_in(*sign, "--yes", "--passphrase-file", str(secret)).exit_code == 0
    known = issued(Store(vault / "state"), "shop")
    assert [str(each.name) for each in known] == list(NODES), "so that its host can revoke them"

    brought = type_in("certs", "renew", "--offline", "--answer", "answer.pem", *config)
    assert brought.exit_code == 0, brought.stderr
    assert [line.split()[0] for line in brought.stdout.splitlines()] == list(NODES)
    assert "no orchestrator runs" in brought.stderr, brought.stderr
    assert type_in("init", "here").exit_code == 0
    assert not {KEY_FILE, SEALED_FILE} & in_ca(here)


def test_a_slip_of_the_pen_overwrites_no_key(here: Path, type_in: Type) -> None:
    config, key = ("-c", str(here / "distsec.toml")), here / "state" / KEY_FILE
    before = key.read_bytes()
    for target in (key, here / "distsec.toml", here):
        refused = type_in("certs", "renew", "--offline", "--all", "--out", str(target), *config)
        assert refused.exit_code == 64
        assert "is neither a request nor an answer to one" in refused.stderr
    assert key.read_bytes() == before


def test_a_request_goes_through_a_pipe(here: Path, type_in: Type) -> None:
    asked = type_in("certs", "renew", "--offline", "--all", "--out", "-", "-c", str(here / "distsec.toml"))
    assert asked.stdout.count("BEGIN CERTIFICATE REQUEST") == 2


# ---- on a terminal


@pytest.fixture
def terminal(here: Path) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:

        def sit_down(*args: str) -> Terminal:
            environment = {"PATH": os.environ["PATH"], "DISTSEC_CONFIG": str(here / "distsec.toml")}
            command = [*COMMAND, *args]
            return stack.enter_context(Terminal(command, environment=environment, directory=str(here)))

        yield sit_down


def test_a_new_passphrase_is_asked_for_twice_and_shown_never(
    here: Path, secret: Path, terminal: Callable[..., Terminal]
) -> None:
    seal = terminal("certs", "seal")
    seal.wait("New passphrase of the CA's key: ")
    seal.type(f"{WORD}\n")
    seal.wait("New passphrase of the CA's key, again: ")
    seal.type(f"{WORD}\n")
    assert seal.exit_code() == 0
    assert WORD.encode() not in seal.output
    assert can_issue(here, secret)

    unseal = terminal("certs", "unseal")
    unseal.wait("Passphrase of the CA's key: ")
    unseal.type(f"{WORD}\n")
    assert unseal.exit_code() == 0
    assert can_issue(here)


def test_two_passphrases_that_differ_seal_nothing(here: Path, terminal: Callable[..., Terminal]) -> None:
    seal = terminal("certs", "seal")
    for word in (WORD, WORD + "."):
        seal.wait(": ")
        seal.type(f"{word}\n")
    assert seal.exit_code() == 66
    assert b"the two passphrases differ" in seal.output
    assert KEY_FILE in in_ca(here)


def test_sign_asks_before_it_signs(here: Path, type_in: Type, terminal: Callable[..., Terminal]) -> None:
    type_in(
        "certs",
        "renew",
        "--offline",
        "--all",
        "--out",
        str(here / "ask.pem"),
        "-c",
        str(here / "distsec.toml"),
    )
    for answer, code in (("n", 130), ("y", 0)):
        sign = terminal("certs", "sign", "ask.pem", "--out", "answer.pem")
        sign.wait("Sign these 2? [y/N]: ")
        assert b"spiffe://shop/node/127.0.0.1/a" in sign.output
        sign.type(f"{answer}\n")
        assert sign.exit_code() == code
        assert (here / "answer.pem").exists() is (answer == "y")
