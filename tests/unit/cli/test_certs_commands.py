"""`certs issue`, `certs import` and `certs export` as they are typed, without an orchestrator."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from distsec.cli.group import distsec
from distsec.pki.authority import serial_text
from tests.brought import DAY, Ca, Key, key_of, key_pem, p256, pem

Command = Callable[..., Result]
A, B = "a@127.0.0.1", "b@127.0.0.1"
FAR = "far@10.9.0.1"
ID = "spiffe://shop/node/127.0.0.1/a"


class Here:
    """A cluster of a and b, and the command line beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"

    def __call__(self, *words: str | Path) -> Result:
        env = {"DISTSEC_CONFIG": str(self.root / "distsec.toml")}
        return CliRunner().invoke(distsec, [str(word) for word in words], env=env, prog_name="distsec")

    def did(self, *words: str | Path) -> Result:
        done = self(*words)
        assert done.exit_code == 0, done.stderr
        return done

    def node(self, name: str = A) -> Path:
        return self.state / "nodes" / name

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def authority(self) -> Ca:
        key = serialization.load_pem_private_key((self.state / "ca/key.pem").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((self.state / "ca/certificate.pem").read_bytes())
        return Ca(key, certificate)  # type: ignore[arg-type]

    def bring(
        self, key: Key, *chain: x509.Certificate, node: str = A, passphrase: bytes | None = None
    ) -> Result:
        certificate = self.file("brought.pem", pem(*chain))
        private = self.file("brought.key", key_pem(key, passphrase))
        more = ("--key-passphrase-file", self.file("word", passphrase)) if passphrase else ()
        return self("certs", "import", "--node", node, "--certificate", certificate, "--key", private, *more)

    def bring_ca(self, ca: Ca, *more: str | Path, with_key: bool = True) -> Result:
        words: list[str | Path] = ["--ca-certificate", self.file("ca.pem", ca.pem)]
        words += ["--ca-key", self.file("ca.key", key_pem(ca.key))] if with_key else []
        return self("certs", "import", *words, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("certs") / "made"
    Here(root).did("init", root, "--name", "shop", "--node", A, "--node", B)
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Here:
    return Here(Path(shutil.copytree(made, tmp_path / "here")))


def openssl(*words: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def leaf_in(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "certificate.pem").read_bytes())


# ---- issue -------------------------------------------------------------------------------------------------


def test_issue_makes_a_private_directory_that_openssl_verifies(here: Here, tmp_path: Path) -> None:
    done = here.did("certs", "issue", FAR, "--out", tmp_path / "far", "--days", "30")
    far = tmp_path / "far"
    assert sorted(path.name for path in far.iterdir()) == ["certificate.pem", "key.pem", "trust.pem"]
    assert mode(far) == 0o700
    assert {mode(path) for path in far.iterdir()} == {0o600}
    for purpose in ("sslserver", "sslclient"):
        told = openssl(
            *("verify", "-x509_strict", "-purpose", purpose, "-CAfile", far / "trust.pem"),
            far / "certificate.pem",
        )
        assert told.endswith("certificate.pem: OK\n")
    leaf = leaf_in(far)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://shop/node/10.9.0.1/far"]
    assert 29 * DAY < leaf.not_valid_after_utc - leaf.not_valid_before_utc < 31 * DAY
    assert f"spiffe://shop/node/10.9.0.1/far, serial {leaf.serial_number:032x}, until " in done.stdout
    assert done.stderr == (f"distsec: warning: nobody lets {FAR} in yet: `distsec allow {FAR}`\n")
    assert "PRIVATE" not in done.output
    assert (here.state / "ca/issued" / f"{leaf.serial_number:032x}.pem").exists()


def test_issue_says_the_same_as_json_and_takes_the_address(here: Here, tmp_path: Path) -> None:
    name = "far@db.example.net"
    done = here.did("certs", "issue", name, "--out", tmp_path / "x", "--address", "192.0.2.7", "--json")
    document = json.loads(done.stdout)
    leaf = leaf_in(tmp_path / "x")
    assert document["schema"] == 1
    assert document["serial"] == f"{leaf.serial_number:032x}"
    assert document["files"] == ["key.pem", "certificate.pem", "trust.pem"]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert names.get_values_for_type(x509.DNSName) == ["db.example.net"]


def request(uri: str, key: Key | None = None, extra: x509.ExtensionType | None = None) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, False)
    if extra is not None:
        builder = builder.add_extension(extra, False)
    made = builder.sign(key or p256(), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def test_a_request_gets_its_key_certified_and_nothing_else_that_it_wants(here: Here, tmp_path: Path) -> None:
    key = p256()
    wants = x509.BasicConstraints(ca=True, path_length=None)
    csr = here.file("far.csr", request("spiffe://shop/node/10.9.0.1/far", key, wants))
    here.did("certs", "issue", FAR, "--csr", csr, "--out", tmp_path / "far")
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["certificate.pem", "trust.pem"]
    leaf = leaf_in(tmp_path / "far")
    assert leaf.public_key() == key.public_key()
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("spiffe://other/node/10.9.0.1/far", "is no node of shop"),
        ("spiffe://shop/node/10.9.0.1/near", "is for near@10.9.0.1, not for far@10.9.0.1"),
        ("spiffe://shop/cli/far", "is no node of shop"),
    ],
)
def test_a_request_for_somebody_else_is_refused(here: Here, tmp_path: Path, uri: str, said: str) -> None:
    done = here("certs", "issue", FAR, "--csr", here.file("x.csr", request(uri)), "--out", tmp_path / "far")
    assert done.exit_code == 65
    assert said in done.stderr
    assert not (here.state / "ca/issued").exists()
    assert not (tmp_path / "far").exists()


def test_a_request_that_is_not_there_is_wrong_usage(here: Here, tmp_path: Path) -> None:
    done = here("certs", "issue", FAR, "--csr", tmp_path / "none", "--out", tmp_path / "far")
    assert done.exit_code == 64
    assert "none: cannot be read: no such file or directory; name another file" in done.stderr
    assert not (tmp_path / "far").exists()


def overlay(here: Here, **fields: object) -> None:
    document = {
        **{"schema": 3, "generation": 2, "allow": [], "deny": [], "revoked": [], "issued_at": 0},
        **{"epochs": {}, "tainted": [], "revoked_identities": []},
        **fields,
    }
    here.file("state/policy.overlay", json.dumps(document).encode())


@pytest.mark.parametrize(
    ("fields", "name", "said"),
    [
        ({"deny": [FAR]}, FAR, f"{FAR} is denied"),
        (
            {"revoked_identities": ["spiffe://shop/node/10.9.0.1/far"]},
            FAR,
            "is revoked, whatever certificate",
        ),
        ({"allow": [{"name": FAR, "identity": "dns:far.example"}]}, FAR, "is known by dns:far.example"),
        ({}, A, f"{A} is managed here"),
    ],
)
def test_issue_refuses_whom_it_would_not_help(
    here: Here, tmp_path: Path, fields: dict[str, object], name: str, said: str
) -> None:
    overlay(here, **fields)
    done = here("certs", "issue", name, "--out", tmp_path / "far")
    assert (done.exit_code, said in done.stderr) == (64, True)
    assert "distsec allow" in done.stderr or "certs renew" in done.stderr or "--identity" in done.stderr


def test_issue_touches_no_directory_that_holds_something(here: Here, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/key.pem").write_text("precious")
    done = here("certs", "issue", FAR, "--out", tmp_path / "far")
    assert done.exit_code == 64
    assert (tmp_path / "far/key.pem").read_text() == "precious"


def test_without_the_cas_key_issue_says_so(here: Here, tmp_path: Path) -> None:
    (here.state / "ca/key.pem").unlink()
    done = here("certs", "issue", FAR, "--out", tmp_path / "far")
    assert done.exit_code == 66
    assert "key" in done.stderr


# ---- import of a node's own --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_pair_that_is_brought_takes_the_place_of_the_nodes(here: Here, kind: str) -> None:
    key, leaf = here.authority().leaf(ID, key=key_of(kind))
    done = here.bring(key, leaf)
    assert done.exit_code == 0, done.stderr
    assert f"{ID}  {serial_text(leaf.serial_number)}  imported\n" in done.stdout
    assert leaf_in(here.node()) == leaf
    assert (here.node() / "key.pem").read_bytes() == key_pem(key)
    assert mode(here.node() / "key.pem") == 0o600
    assert "no orchestrator runs" in done.stderr
    assert "was there already" in here.bring(key, leaf).stdout
    here.did("init", here.root)  # it is as good as one of ours


def test_a_key_with_a_passphrase_is_opened_and_kept_without(here: Here) -> None:
    key, leaf = here.authority().leaf(ID)
    done = here.bring(key, leaf, passphrase=b"correct horse")
    assert done.exit_code == 0, done.stderr
    assert (here.node() / "key.pem").read_bytes() == key_pem(key)


def test_the_older_form_of_a_key_is_read_too_and_one_that_others_can_read_is_warned_of(here: Here) -> None:
    key, leaf = here.authority().leaf(ID)
    older = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"correct horse"),
    )
    words = ("certs", "import", "--node", A, "--certificate", here.file("x.pem", pem(leaf)), "--key")
    sealed = here.file("older.key", older)
    sealed.chmod(0o644)
    done = here.did(*words, sealed, "--key-passphrase-file", here.file("word", b"correct horse"))
    assert "others can read" not in done.stderr
    plain = here.file("plain.key", key_pem(key))
    plain.chmod(0o644)
    assert "distsec: warning: others can read" in here.did(*words, plain).stderr


def test_a_wrong_passphrase_or_none_is_said_and_changes_nothing(here: Here) -> None:
    key, leaf = here.authority().leaf(ID)
    before = (here.node() / "key.pem").read_bytes()
    sealed = here.file("sealed.key", key_pem(key, b"correct horse"))
    words = ("certs", "import", "--node", A, "--certificate", here.file("x.pem", pem(leaf)), "--key", sealed)
    wrong = here(*words, "--key-passphrase-file", here.file("word", b"battery staple"))
    assert (wrong.exit_code, "cannot be opened with this passphrase" in wrong.stderr) == (66, True)
    none = here(*words)
    assert (none.exit_code, "--key-passphrase-file" in none.stderr) == (66, True)
    for done in (wrong, none):
        assert "staple" not in done.output and "horse" not in done.output
    assert (here.node() / "key.pem").read_bytes() == before


def test_what_is_not_the_nodes_is_refused_with_the_reason_and_changes_nothing(here: Here) -> None:
    ours, foreign = here.authority(), Ca.root("CN=Foreign")
    key, leaf = ours.leaf(ID)
    cases = [
        ((p256(), leaf), "does not belong to the key"),
        (foreign.leaf(ID), "does not lead to a CA that the nodes trust"),
        (ours.leaf("spiffe://shop/node/127.0.0.1/b"), "is for spiffe://shop/node/127.0.0.1/b, not for"),
        (ours.leaf(ID, end=-DAY, begin=-9 * DAY), "has expired"),
        (ours.leaf(ID, begin=DAY), "is not valid before"),
        (ours.leaf(ID, extended=None), "extendedKeyUsage"),
        (ours.leaf(ID, key=key_of("rsa1024")), "is an RSA key of 1024 bits"),
    ]
    before = {path.name: path.read_bytes() for path in here.node().glob("*.pem")}
    for (private, certificate), said in cases:
        done = here.bring(private, certificate)
        assert (done.exit_code, said in done.stderr) == (65, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    overlay(here, revoked=[serial_text(leaf.serial_number)])
    assert "is revoked" in here.bring(key, leaf).stderr
    assert here.bring(key, leaf, node="z@127.0.0.1").exit_code == 68
    assert {path.name: path.read_bytes() for path in here.node().glob("*.pem")} == before


def test_a_chain_is_put_in_order_and_the_anchor_left_out(here: Here) -> None:
    root = Ca.root()
    between = Ca.root("CN=Between", above=root)
    assert here.bring_ca(between, "--replace").exit_code == 0
    lower = Ca.root("CN=Lower", above=between)
    key, leaf = lower.leaf(ID)
    done = here.bring(key, leaf, root.certificate, between.certificate, lower.certificate)
    assert done.exit_code == 0, done.stderr
    found = x509.load_pem_x509_certificates((here.node() / "certificate.pem").read_bytes())
    assert found == [leaf, lower.certificate, between.certificate]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--node", A),
        ("--node", A, "--certificate", "x"),
        ("--certificate", "x", "--key", "y"),
        ("--node", A, "--certificate", "x", "--key", "y", "--replace"),
        ("--ca-certificate", "x", "--key", "y"),
        ("--ca-certificate", "x", "--seal"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(here: Here, words: tuple[str, ...]) -> None:
    assert here("certs", "import", *words).exit_code == 64


# ---- import of a CA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_ca_that_is_brought_issues_for_every_node(here: Here, kind: str) -> None:
    before = leaf_in(here.node())
    ca = Ca.root(key=key_of(kind))
    done = here.bring_ca(ca, "--replace")
    assert done.exit_code == 0, done.stderr
    assert f"made anew: {A}, {B}" in done.stdout
    for name in (A, B):
        found = here.node(name)
        told = openssl("verify", "-x509_strict", "-CAfile", found / "trust.pem", found / "certificate.pem")
        assert told.endswith("certificate.pem: OK\n")
        assert x509.load_pem_x509_certificates((found / "trust.pem").read_bytes()) == [ca.certificate]
    assert leaf_in(here.node()) != before
    assert "was there already" in here.bring_ca(ca).stdout
    here.did("certs", "issue", FAR, "--out", here.root / "far")


def test_below_an_intermediate_nodes_show_it_and_trust_the_root(here: Here, tmp_path: Path) -> None:
    root = Ca.root()
    between = Ca.root("CN=Between", above=root, pathlen=0)
    done = here.bring_ca(between, "--replace")
    assert done.exit_code == 0, done.stderr
    node = here.node()
    chain = x509.load_pem_x509_certificates((node / "certificate.pem").read_bytes())
    assert chain[1:] == [between.certificate]
    assert x509.load_pem_x509_certificates((node / "trust.pem").read_bytes()) == [root.certificate]
    (tmp_path / "between.pem").write_bytes(pem(between.certificate))
    told = openssl(
        *("verify", "-x509_strict", "-CAfile", node / "trust.pem", "-untrusted", tmp_path / "between.pem"),
        node / "certificate.pem",
    )
    assert told.endswith("certificate.pem: OK\n")
    exported = here.did("certs", "export", "--ca").stdout.encode()
    assert x509.load_pem_x509_certificates(exported) == [root.certificate]


def test_a_ca_whose_key_is_elsewhere_leaves_nothing_behind_that_could_sign(here: Here) -> None:
    done = here.bring_ca(Ca.root(), "--replace", with_key=False)
    assert done.exit_code == 0, done.stderr
    assert not (here.state / "ca/key.pem").exists()
    assert "certs renew --offline" in done.stderr


def test_a_ca_is_not_replaced_unless_that_is_said(here: Here) -> None:
    before = (here.state / "ca/certificate.pem").read_bytes()
    done = here.bring_ca(Ca.root())
    assert (done.exit_code, "there is a CA already" in done.stderr) == (64, True)
    assert (here.state / "ca/certificate.pem").read_bytes() == before


def test_a_ca_that_could_not_issue_is_refused_with_the_reason(here: Here) -> None:
    root = Ca.root()
    below = Ca.root("CN=Below", above=root)
    uri = x509.UniformResourceIdentifier
    cases = [
        (Ca(below.key, below.certificate), "does not lead to a root"),
        (Ca(below.key, below.certificate, (Ca.root("CN=Other").certificate,)), "is not who issued"),
        (Ca.root(is_ca=False, granted=["digital_signature"]), "basicConstraints"),
        (Ca.root(granted=["crl_sign"]), "may not sign certificates"),
        (Ca.root(begin=-9 * DAY, end=-DAY), "has expired"),
        (Ca.root("CN=Long", above=Ca.root(end=9 * DAY)), "outlives certificate 2"),
        (Ca.root(uris=["spiffe://other"]), "is the CA of 'spiffe://other'"),
        (Ca.root(constraints=x509.NameConstraints([uri("other")], None)), "nameConstraints"),
        (Ca.root(key=key_of("p521")), "secp521r1"),
    ]
    before = (here.state / "ca/certificate.pem").read_bytes()
    for ca, said in cases:
        done = here.bring_ca(ca, "--replace")
        assert (done.exit_code, said in done.stderr) == (65, True), done.stderr
    assert (here.state / "ca/certificate.pem").read_bytes() == before
    other = here("certs", "import", "--ca-certificate", here.file("ca.pem", root.pem), "--replace",
                 "--ca-key", here.file("ca.key", key_pem(p256())))  # fmt: skip
    assert (other.exit_code, "does not belong to the key" in other.stderr) == (65, True)


def test_an_import_that_was_interrupted_is_finished_by_running_it_again(here: Here) -> None:
    ca = Ca.root()
    (here.state / "ca/key.pem").write_bytes(key_pem(ca.key))  # killed after the first of its writes
    assert here("init", here.root).exit_code != 0
    done = here.bring_ca(ca, "--replace")
    assert done.exit_code == 0, done.stderr
    here.did("init", here.root)


# ---- export ------------------------------------------------------------------------------------------------


def test_export_gives_certificates_and_never_a_key_but_to_a_private_file(here: Here, tmp_path: Path) -> None:
    content = here.did("certs", "export", A).stdout
    assert content.encode() == (here.node() / "certificate.pem").read_bytes()
    assert here.did("certs", "export", "--ca").stdout.encode() == (here.node() / "trust.pem").read_bytes()
    key, out = tmp_path / "a.key", tmp_path / "a.pem"
    done = here.did("certs", "export", A, "--with-key", key, "--out", out)
    assert "PRIVATE" not in done.output
    assert key.read_bytes() == (here.node() / "key.pem").read_bytes()
    assert mode(key) == 0o600
    again = here("certs", "export", A, "--with-key", key)
    assert (again.exit_code, "is not replaced by a key" in again.stderr) == (73, True)


def test_export_finds_what_was_issued_for_a_node_elsewhere(here: Here, tmp_path: Path) -> None:
    here.did("certs", "issue", FAR, "--out", tmp_path / "far")
    assert here.did("certs", "export", FAR).stdout.encode() == (tmp_path / "far/certificate.pem").read_bytes()
    refused = here("certs", "export", FAR, "--with-key", tmp_path / "k")
    assert refused.exit_code == 68
    assert here("certs", "export", "nobody@h").exit_code == 68


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 64),
        ((A, "--ca"), 64),
        (("--ca", "--with-key", "k"), 64),
        ((A, "--with-key", "-"), 64),
        (("--crl",), 68),
    ],
)
def test_export_refuses_what_makes_no_sense(here: Here, words: tuple[str, ...], code: int) -> None:
    assert here("certs", "export", *words).exit_code == code
