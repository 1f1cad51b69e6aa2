"""The one interpreter of effects: keeps the nodes as they are wanted, and the policy in force in all of them.

    supervisor.py  all nodes together; what operators ask for (control.service.Orchestrator); the end
    operation.py   starting and stopping nodes because somebody asks
    reload.py      a new configuration: what fails leaves the old one, or is named
    fitness.py     which nodes nothing could start, before any is started
    node.py        one node: feeds `core.lifecycle`, performs its effects, hears its agent
    proving.py     looks at it: is its guard in force, what does its port show
    observed.py    what that agent has told: links, refusals, the policy in force
    policy.py      the wanted policy: performs what `core.rollout` decides
    renewal.py, serving.py, link_proof.py, dropped.py, credentials.py
                   certificates with a life: when; up to what a port shows; links with them; what somebody
                   else brings; their files
    ca_rotation.py, ca_nodes.py, succession.py
                   a new CA: performs what `core.rotation` decides; what it asks of nodes; its files
    revocation.py, revocation_lists.py
                   which certificates there are, and revoking; the lists (CRL) of what is
    machine.py     files, processes, sockets and probes, behind an interface that tests can replace
    external.py    the process of a node that something else starts
    proof.py, echoes.py, difference.py, views.py
                   pure: is the guard in force; our own probes' refusals; what a reload has to do; documents

Decisions are not made here but in `core`; what bytes mean is `beam`'s. `daemon` builds and runs a Supervisor,
the control service talks to it.
"""

from distsec.supervisor.supervisor import Supervisor

__all__ = ["Supervisor"]
