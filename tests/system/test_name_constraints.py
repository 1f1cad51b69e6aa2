"""What docs/adr/0012 says of OTP: name constraints count on intermediate CAs, and not on an anchor."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cryptography import x509

from tests.brought import Ca, pem
from tests.releases import Otp

PERMITTED = x509.NameConstraints([x509.UniformResourceIdentifier("demo")], None)
SCRIPT = """
Read = fun(Name) -> {{ok, Pem}} = file:read_file({directory} ++ Name),
                    [Der || {{_, Der, _}} <- public_key:pem_decode(Pem)] end,
[begin
     [Anchor | Chain] = Read(integer_to_list(N)),
     io:format("~s ", [element(1, public_key:pkix_path_validation(Anchor, Chain, []))])
 end || N <- [1, 2, 3, 4]],
halt().
"""


def test_otp_looks_at_constraints_of_intermediates_alone(otp: Otp, tmp_path: Path) -> None:
    plain, constrained = Ca.root("CN=Plain"), Ca.root("CN=Constrained", constraints=PERMITTED)
    between = Ca.root("CN=Between", above=plain, constraints=PERMITTED)
    cases = [(constrained, "demo"), (constrained, "other"), (between, "demo"), (between, "other")]
    for number, (issuer, domain) in enumerate(cases, 1):
        _, leaf = issuer.leaf(f"spiffe://{domain}/node/127.0.0.1/a")
        path = (issuer.certificate,) if issuer is constrained else (plain.certificate, between.certificate)
        (tmp_path / str(number)).write_bytes(pem(*path, leaf))
    script = SCRIPT.format(directory=f'"{tmp_path}/"')
    done = subprocess.run(
        [otp.erl, "-noinput", "-eval", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["ok", "ok", "ok", "error"], done.stderr
