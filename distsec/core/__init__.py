"""Pure decisions: who is admitted, which policy is wanted, how it is rolled out, what becomes of a node.

    admission.py   the decision about a peer, twin of `distsec_policy:decide/2` in every node
    wanted.py      the policy that the configuration and the overlay of `allow` and `deny` ask for
    rollout.py     how a policy reaches all nodes, in two phases where somebody is let in
    renewal.py     when a certificate is renewed, tried again, and warned of
    rotation.py    how a new CA takes the place of the old one, in phases that lock nobody out; its record
    lifecycle.py   what becomes of a node, as a table

Time and randomness are arguments; the result is a value: a decision, or the next state with its effects. Does
not live here: I/O, logging, waiting (a linter refuses the imports). The supervisor calls it.
"""
