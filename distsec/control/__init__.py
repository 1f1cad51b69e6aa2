"""How an operator reaches the running orchestrator: one service, thin adapters around it.

    service.py  the use cases, over the `Orchestrator` protocol that the supervisor implements
    http.py     versioned JSON on the Unix socket `state/control.sock`, for root and its own user
    scrape.py   GET /metrics on the `[metrics]` address, and nothing else
    metrics_port.py  that address, as soon as it is to be had
    client.py   the other end of the socket, standard library only, so that the CLI starts fast
    wire.py     what both ends agree on: paths, the schema's version, errors as JSON

Does not live here: any decision about a node or a policy (`core`), and how things look on a terminal (`cli`).
`daemon` starts the servers; `cli` uses the client. Later adapters (gRPC, the web console) come here too.
"""
