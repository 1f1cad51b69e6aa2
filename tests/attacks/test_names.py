"""Strangers choose names and identities; neither metrics nor the victim's atoms grow with them."""

from __future__ import annotations

import shutil
import subprocess

from tests.attacks.claim import claim
from tests.attacks.scene import VICTIM, Scene
from tests.system.intruder import refused, string

REAL = 50
"""Identities that come as real handshakes; the rest are decided in the victim as if they had come."""

MANY = 10_000
CLAIMED = 200

NOISE = 64
"""Atoms that a node makes in passing, whoever comes: modules that are loaded, and the like."""

_VERIFY_MANY = """
{{ok, Pem}} = file:read_file({path}),
[{{'Certificate', Der, not_encrypted}}] = public_key:pem_decode(Pem),
Bytes = term_to_binary(public_key:pkix_decode_cert(Der, otp)),
Verify = fun(N) ->
             Own = iolist_to_binary(io_lib:format("~5..0b", [N])),
             Theirs = binary:replace(Bytes, <<"stranger-00000">>, <<"stranger-", Own/binary>>),
             {{fail, {{distsec, not_allowed}}}} =
                 distsec_verify:verify(binary_to_term(Theirs), valid_peer, #{{role => server}})
         end,
lists:foreach(Verify, lists:seq(1, {times})),
Verify({times})
"""


def atoms(scene: Scene) -> int:
    return int(scene.erl("erlang:system_info(atom_count)"))


def told_or_dropped(scene: Scene) -> float:
    """Refusals that the log tells of, and those that it may not: what was overwritten before it was
    acknowledged counts as dropped, though some of it was on its way."""
    dropped = scene.counted("distsec_events_dropped_total", "node", "lane")
    return scene.denied()["not_allowed"] + sum(dropped.values())


def test_ten_thousand_identities_add_no_series_and_no_atoms(scene: Scene) -> None:
    template = scene.cluster.leaf("stranger-00000")
    scene.erl(_VERIFY_MANY.format(path=string(str(template.certificate)), times=1))
    before, known = atoms(scene), scene.series().keys()

    for number in range(REAL):
        knock = scene.knock(scene.cluster.leaf(f"real-{number}"))
        assert refused(knock.connection)
        knock.connection.close()
    scene.erl(_VERIFY_MANY.format(path=string(str(template.certificate)), times=MANY), 100)

    scene.settle()
    whole = 2 + REAL + MANY + 1
    assert scene.refusals() == {(VICTIM, "in", "not_allowed"): whole}
    scene.cluster.wait(
        lambda: told_or_dropped(scene) >= whole, "every event to be told, or counted as dropped"
    )
    assert scene.series().keys() == known
    assert atoms(scene) - before < NOISE
    scene.expect_nothing_happened()


def test_claimed_names_add_no_series_and_at_most_one_atom_each(scene: Scene) -> None:
    """Stock OTP makes an atom of a claimed name before it looks at the cookie. It comes to that with a listed
    certificate only: nobody else gets to claim a name (docs/security-model.md)."""
    leaf, guess = scene.cluster.leaf("b"), "a_guess"
    assert not claim(scene.port, leaf, "first@127.0.0.1", guess).admitted
    scene.cluster.wait(lambda: scene.denied()["bad_cookie"] == 1, "the first refusal")
    before, known = atoms(scene), scene.series().keys()

    for number in range(CLAIMED):
        made = claim(scene.port, leaf, f"ghost-{number}@127.0.0.1", guess)
        assert not made.admitted
        made.connection.close()

    scene.settle()
    assert scene.refusals() == {(VICTIM, "in", "bad_cookie"): CLAIMED + 1}
    assert scene.series().keys() == known
    assert atoms(scene) - before < CLAIMED + NOISE
    scene.expect_nothing_happened()


def test_promtool_finds_nothing_wrong_with_the_metrics(scene: Scene) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: on Debian it is in the package prometheus"
    said = subprocess.run(
        [promtool, "check", "metrics"],
        input=scene.cluster.metrics(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
