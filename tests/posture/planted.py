"""A clean set-up to plant misconfigurations in, and what `check` says of it, with nothing running."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distsec.cli.initialise import initialise
from distsec.posture.check import judge
from distsec.posture.collect.emulator import parse
from distsec.posture.collect.gather import gather_configuration, gather_host
from distsec.posture.collect.processes import Beam, Found
from distsec.posture.facts import Facts
from distsec.posture.finding import NOT_COUNTED, Code, Finding, Severity
from tests.system.cluster import free_ports

A, B = "a@127.0.0.1", "b@127.0.0.1"
DAY = timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def told(findings: Sequence[Finding]) -> set[Code]:
    """The codes that say something is wrong: above info, and not what the host itself decides."""
    return {
        each.code for each in findings if each.severity is not Severity.INFO and each.code not in NOT_COUNTED
    }


Plant = Callable[["Planted"], object]


class Corpus(list[tuple[Code, Plant]]):
    """Functions that plant one thing each, and what is to be found of it."""

    def plants(self, code: Code) -> Callable[[Plant], Plant]:
        def register(plant: Plant) -> Plant:
            self.append((code, plant))
            return plant

        return register


def check_planted(clean: Planted, code: Code, plant: Plant) -> None:
    """Plants it; asserts that this is found, nothing else, and that each finding says what to do."""
    plant(clean)
    findings = clean.check()
    assert told(findings) == {code}, [each.as_dict() for each in findings]
    for each in findings:
        assert each.what and each.where and (each.fix or each.severity is Severity.INFO)


class Planted:
    """Two nodes in `directory`. `found`: the emulators of this host, of which there are none at first."""

    def __init__(self, directory: Path, template: Path | None = None) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "distsec.toml"
        self.found = Found()
        self.keep = ExitStack()
        self.status: Mapping[str, Any] | None = None
        if template is not None:  # paths in its files lead there, which nothing here looks at
            shutil.copytree(template, directory, dirs_exist_ok=True)
        else:
            self._give_ports()
            initialise(directory, name="demo", nodes=[A, B], mode=None, environment={}, now=time.time())

    def _give_ports(self) -> None:
        """Ports that no test beside this one listens on, nor the kernel gives a connection: those that `init`
        has the system choose are anybody's again, and whoever listens there then is a finding.
        """
        self.state.mkdir(mode=0o700)
        ports = self.state / "ports.json"
        ports.write_text(json.dumps({"schema": 1, "ports": dict(zip((A, B), free_ports(2), strict=True))}))
        ports.chmod(0o600)

    def node(self, name: str = A) -> Path:
        return self.state / "nodes" / name

    def facts(self) -> Facts:
        return gather_configuration(
            self.config,
            {},
            now=time.time(),
            search=os.environ["PATH"],
            ask=lambda: (self.status, "no orchestrator answers"),
        )

    def check(self) -> tuple[Finding, ...]:
        return judge(self.facts())

    def check_host(self) -> tuple[Finding, ...]:
        return judge(gather_host(now=time.time(), search=""))

    # ---- what can be planted

    def edit(self, change: Callable[[str], str]) -> None:
        """Changes the configuration."""
        text = self.config.read_text()
        changed = change(text)
        assert changed != text
        self.config.write_text(changed)

    def rewrite(self, path: Path, change: Callable[[str], str]) -> None:
        """Changes a file of the state; its mode stays."""
        text = path.read_text()
        changed = change(text)
        assert changed != text
        path.write_text(changed)

    def certify(self, name: str = A, **how: Any) -> x509.Certificate:
        """Puts another certificate for the node's own key in its place, by the cluster's CA."""
        key = load_key(self.node(name) / "key.pem")
        certificate = issue(
            public=how.pop("public", None) or key.public_key(),
            issuer=load_certificate(self.state / "ca/certificate.pem"),
            issuer_key=load_key(self.state / "ca/key.pem"),
            uris=how.pop("uris", [f"spiffe://demo/node/127.0.0.1/{name.partition('@')[0]}"]),
            **how,
        )
        (self.node(name) / "certificate.pem").write_bytes(pem(certificate))
        return certificate

    def overlay(self, **changes: object) -> None:
        """Writes what `allow`, `deny` and `certs revoke` would have."""
        document = {"schema": 2, "generation": 1, "allow": [], "deny": [], "revoked": [], "issued_at": 0}
        path = self.state / "policy.overlay"
        path.write_text(json.dumps({**document, "epochs": {}, "tainted": [], **changes}))
        path.chmod(0o600)

    def beam(
        self,
        *words: str,
        pid: int = 4_000_000,
        environ: Sequence[str] = (),
        uid: int = 1234,
        listeners: Sequence[tuple[str, int]] = (),
        root: str = "/nowhere",
    ) -> Beam:
        """An emulator of somebody else, with these arguments."""
        from distsec.posture.collect.cookies import in_arguments

        argv = ["/usr/lib/erlang/erts-13.1.5/bin/beam.smp", "--", "-root", root, "--", *words]
        beam = Beam(
            pid=pid,
            uid=uid,
            flags=parse(argv),
            cookies=tuple(in_arguments(os.fsencode("\0".join(argv)))),
            environ=os.fsencode("\0".join(environ)),
            listeners=tuple(listeners),
            root=Path("/"),
            directory=self.directory,
            here=True,
        )
        self.found.beams.append(beam)
        return beam

    def stock(self, server: str = "", client: str = "", **how: Any) -> Beam:
        """An emulator of somebody else with TLS as OTP documents it, in good order; `server`, `client`: see
        `options`."""
        directory = self.directory / "stock"
        directory.mkdir(exist_ok=True)
        for name in ("key.pem", "certificate.pem", "trust.pem"):
            shutil.copy(self.node() / name, directory / name)
        (directory / "dist.conf").write_text(
            f"[{{server,[{options(directory, server, server=True)}]}},\n"
            f" {{client,[{options(directory, client, server=False)}]}}].\n"
        )
        (directory / ".erlang.cookie").write_text("QXZJWKPLMNVBCRTYGHSD")
        for path in directory.iterdir():
            path.chmod(0o600)
            os.chown(path, how.get("uid", 1234), -1)
        words = ["-home", str(directory), "-name", "s@127.0.0.1", "-proto_dist", "inet_tls"]
        words += ["-ssl_dist_optfile", str(directory / "dist.conf"), *how.pop("words", ())]
        os.chown(directory, how.get("uid", 1234), -1)
        self.directory.chmod(0o755)
        os.chown(self.directory, 0, -1)
        return self.beam(*words, **how)


def options(directory: Path, more: str, *, server: bool) -> str:
    """Options of one role that are in order, with `more`, of which each `{name,` replaces the one of that
    name, and `-name` takes it out."""
    made = {
        "certfile": f'{{certfile,"{directory}/certificate.pem"}}',
        "keyfile": f'{{keyfile,"{directory}/key.pem"}}',
        "cacertfile": f'{{cacertfile,"{directory}/trust.pem"}}',
        "verify": "{verify,verify_peer}",
        "versions": "{versions,['tlsv1.3']}",
    }
    if server:
        made["fail_if_no_peer_cert"] = "{fail_if_no_peer_cert,true}"
    for part in filter(None, more.split(";")):
        if part.startswith("-"):
            del made[part[1:]]
        else:
            made[part[1:].partition(",")[0]] = part
    return ",".join(made.values())


# ---- certificates ------------------------------------------------------------------------------------------


def load_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return key


def load_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def ca(
    name: str = "demo", *, key: Any = None, is_ca: bool = True, **how: Any
) -> tuple[Any, x509.Certificate]:
    """A self-signed CA's key and certificate."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = issue(
        public=key.public_key(),
        issuer_key=key,
        subject=subject,
        uris=["spiffe://demo"],
        dns=(),
        usage=None,
        is_ca=is_ca,
        days=how.pop("days", 3000),
        **how,
    )
    return key, certificate


def issue(
    *,
    public: Any,
    issuer_key: Any,
    issuer: x509.Certificate | None = None,
    subject: x509.Name | None = None,
    uris: Sequence[str] = (),
    dns: Sequence[str] = ("127.0.0.1",),
    usage: Sequence[x509.ObjectIdentifier] | None = BOTH,
    digital_signature: bool = True,
    is_ca: bool = False,
    begins: timedelta = -DAY,
    days: float = 300,
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    """A certificate that is in order, but for what is said otherwise."""
    name = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    start = datetime.now(UTC) + begins
    names: list[x509.GeneralName] = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature,
                content_commitment=not digital_signature and not is_ca,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=is_ca,
                crl_sign=is_ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(issuer_key, digest or hashes.SHA256())
