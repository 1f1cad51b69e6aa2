"""One build of the agent, made with the oldest release, serves all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.releases import Otp

LOAD = """
Bad = [{M, R} || F <- filelib:wildcard("*.beam"), M <- [list_to_atom(filename:basename(F, ".beam"))],
                 {error, R} <- [code:load_file(M)]],
io:format("~b ~0p", [length(filelib:wildcard("*.beam")), Bad]), halt().
"""


def test_every_module_of_the_oldest_release_s_build_is_loaded_by_every_release(
    otp: Otp, agent_ebin: Path
) -> None:
    """OTP 29 refuses some of what OTP 25's compiler makes of sized binary patterns, and only at boot."""
    done = subprocess.run(
        [otp.erl, "-noinput", "-pa", ".", "-eval", LOAD],
        cwd=agent_ebin,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    count, bad = done.stdout.split(" ", 1)
    assert bad == "[]", f"{bad}\n{done.stderr}"
    assert int(count) == len(list(agent_ebin.glob("*.beam"))) > 10
