"""What leaves the orchestrator about each event: the bus, the log, the metrics.

    bus.py       hands each event to every subscriber, keeps the most recent, and feeds `distsec events -f`
    log.py       JSON lines on stderr, one per event, bounded in a flood
    metrics.py   one registry, fed by the supervisor; no label value that a stranger chose
    counts.py    what it knows of one node (pure)    families.py  from that to the Prometheus families (pure)
    exact.py     counters that stay exact though a node restarts and events are dropped (pure)

Does not live here: what an event means for a node (`core`), who may read it (`control`). The supervisor
publishes; `daemon` wires the subscribers. Nothing here ever decides, and nothing here can stop an event
from being handled.
"""
