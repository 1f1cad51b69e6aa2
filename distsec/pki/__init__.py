"""Keys, certificates, and the state directory that they are kept in.

    files.py      create and replace files atomically, relative to an open directory
    store.py      the state directory: the only writer of keys, and the one place that checks modes and owners
    profile.py    what a CA and a leaf certificate look like (pure)
    authority.py  the CA: issues a node's key and certificate
    sealed.py     a key at rest, sealed with a passphrase (pure); keyring.py opens it, once in a process
    passphrase.py where a passphrase comes from; custody.py: from a plain key to a sealed one and back
    requests.py   signing requests, for a CA whose key is on another host (pure)
    trust.py      which CAs the nodes are to trust now, and which of them issues
    lineage.py    what is above a CA that was brought
    acceptance.py whether a key and certificate may be a node's, whoever made them (pure)
    pairs.py      a node's key and certificate, swapped together
    issued.py     certificates that were issued for nodes elsewhere
    crl.py        the signed lists of what is revoked
    signing.py    the key that signs policies
    cookies.py    distribution cookies, derived from one secret

Does not live here: what the nodes' files contain beyond keys and certificates (`beam.provision`), and who is
allowed (`core`). `beam.provision`, the command line and `check` call it. Time is an argument, in Unix
seconds.
"""
