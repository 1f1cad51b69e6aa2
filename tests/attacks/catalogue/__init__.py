"""Every attack there is, once: tests/attacks/ tries each on managed nodes, `scripts/attack` on any cluster.

    dialogue       the distribution's handshake by hand, in both roles: a peer that is no BEAM
    terms          what it says once it believes itself linked
    canary         how execution is observed: the victim is made to call back
    attack         what an attack is, and the one way to carry it out
    certificates · insiders · noise · dialled · relays · courses   the attacks themselves
    tls13 · tls12  servers that break TLS, for victims that dial

An attacker here knows every cookie unless the attack is about cookies: that is what one node that was taken
over gives away. Nothing here resolves a name, and nothing stays behind: sockets, threads and processes end
with the attack.
"""

from __future__ import annotations

from tests.attacks.catalogue import certificates, courses, dialled, insiders, noise, relays
from tests.attacks.catalogue.attack import Attack

CATALOGUE: tuple[Attack, ...] = (
    *certificates.ATTACKS,
    *insiders.ATTACKS,
    *noise.ATTACKS,
    *dialled.ATTACKS,
    *relays.ATTACKS,
    *courses.ATTACKS,
)

BY_NAME = {attack.name: attack for attack in CATALOGUE}
