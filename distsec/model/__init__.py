"""Values: what the rest of the program talks about. Frozen, slotted, compared by content.

Lives here: node names, policy, events, the cluster as configured and as observed, secrets that hide
themselves. Does not live here: I/O, time, randomness, parsing of files, decisions (those are `core`).
Everybody imports it.
"""
