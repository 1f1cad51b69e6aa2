"""What a run says: a line a round, and a table at the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.faults.chaos.pressure import WHOLE_SECONDS

if TYPE_CHECKING:
    from tests.faults.chaos.run import Round, Run


def line(run: Run, this: Round) -> str:
    """A round, in one line."""
    faults = ", ".join(
        f"{kind}{f' x{count}' if count > 1 else ''}" for kind, count in sorted(this.faults.items()) if count
    )
    late = this.whole_seconds > WHOLE_SECONDS
    waited = f" (its threads waited {this.allowed_seconds:.1f} s for a core)" if late else ""
    return (
        f"round {this.number:3d} ok, {this.seconds:.0f} s: whole {this.whole_seconds:.1f} s after the last "
        f"fault{waited}; {this.events} events, {this.refusals} refusals, {this.messages} messages; {faults}"
    )


def table(document: Mapping[str, Any]) -> str:
    """The figures of a run that held."""
    whole, messages = document["whole_seconds"], document["messages"]
    orchestrator, nodes = document["orchestrator"], document["nodes"]
    faults = document["faults"]
    stretched = f"; {n} rounds above {WHOLE_SECONDS:g} s" if (n := document["stretched"]) else ""
    rows = [
        ("time", f"{document['seconds']:.0f} s, {document['rounds']} rounds, seed {document['seed']}"),
        ("processor", "not known" if document["cores"] is None else f"{document['cores']} cores on average"),
        (
            "faults",
            f"{sum(faults.values())}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(faults.items())),
        ),
        ("processes", f"{document['orchestrators']} orchestrators, {document['launches']} VMs"),
        (
            "mesh whole",
            f"median {whole['median']:.1f} s, at most {whole['most']:.1f} s after the last fault{stretched}",
        ),
        (
            "intruders",
            f"{sum(document['attempts'].values())} attempts, 0 links, 0 executed "
            f"({', '.join(f'{name} {n}' for name, n in document['attempts'].items())})",
        ),
        ("unlisted links", f"0 of {document['links_up']} nodeups that witnesses wrote down"),
        (
            "events",
            f"{document['events']} logged, 0 lost, {document['repeated']} told again after an orchestrator "
            "ended",
        ),
        ("refusals", f"{document['refusals']}, the same in log, metrics and nodes"),
        ("messages", f"{messages['received']} of {messages['sent']}, all in order within their link"),
        (
            "orchestrator",
            f"at most {orchestrator['resident_mib']} MiB, {orchestrator['descriptors']:.0f} descriptors, "
            f"rise {orchestrator['rise_kib_a_round']} KiB a round",
        ),
        (
            "nodes",
            f"at most {nodes['resident_mib']} MiB, {nodes['descriptors']:.0f} descriptors, "
            f"{nodes['atoms']:.0f} atoms, rise {nodes['memory_rise_kib_a_round']} KiB a round",
        ),
        ("commands", ", ".join(f"{what} x{n}" for what, n in sorted(document["commands"].items()))),
    ]
    return "\n" + "\n".join(f"{name:15} {text}" for name, text in rows)
