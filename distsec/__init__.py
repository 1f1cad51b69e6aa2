"""distsec starts, watches and guards clusters of BEAM nodes over mutual-TLS distribution.

Read the project along the path of one event (imports point down only):

    beam/link.py       bytes from the agent's Unix socket
    beam/protocol.py   frames to messages and back, without I/O
    core/lifecycle.py  step(state, event, now) -> (state, effects)
    supervisor.py      performs each effect; the only place that does
    observe/bus.py     hands each event to metrics and log
    control/, cli/     what the operator sees
"""

__version__ = "0.1.0"
