"""All that speaks BEAM: files that a node reads, its process, and the agent inside it.

    term.py              bytes ↔ terms, bounded; the only reader of the External Term Format
    messages.py          what an agent may say, as values; reading.py makes them from terms, strictly
    protocol.py          one connection as a state machine without I/O (docs/port-protocol.md)
    link.py              a node's agent socket; agent_peer.py: one connection to it, fair and bounded
    security_events.py   an agent's message as the event that the rest of the program knows
    render.py and others files for a node (pure), and provision.py, which has them written
    node_pairs.py        which key and certificate a node may have; drops.py: what somebody else brings
    offline.py           what is asked of a CA that is elsewhere, and what comes back
    issuing.py, imports.py, exports.py    certificates for others, from others, and taken away
    node.py and others   a node's process, its sockets, its log, its Erlang

Does not live here: decisions (`core`), keys (`pki`), what is done about an event (`supervisor`), any output.
Called by the supervisor and the daemon; nothing in here calls up. Whatever comes from a node is hostile until
it has been through `term` and `reading`: after that texts are escaped and bounded, and choices are members of
closed sets.
"""
