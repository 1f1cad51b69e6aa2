"""What distsec costs, measured in one run so that the ratios mean something on a noisy machine.

    idle        CPU and memory of an idle orchestrator with 3 and with 20 nodes, against the nodes themselves
    port        events per second from a node's ring to metrics and log, against pushing them into the ring
    start       time until 10 nodes are RUNNING, against a shell script that starts the same 10
    status      wall time of `distsec status`, against `python -c "import click"`
    issue       certificates issued a second, against the key and the signature that each of them needs
    rotation    `certs renew --all` of 10 and of 40 nodes, until it is served and all links are proven
    join        time until a link is up: distsec against TLS as OTP documents it, and against no TLS; per OTP
    throughput  messages of 1 KB, 64 KB and 1 MB over one link, against the same; per OTP
    revocation  a denial, from its arrival in the agent to nodedown; per OTP
    proof       a link that is proven anew, against one that is made, and round trips meanwhile; per OTP
    mesh        20 nodes of `distsec run` until all are linked, against a bare script with the same options

What is compared runs at the same time and is measured in turn; a ratio is the median of the rounds' ratios,
and what is printed behind it are their quartiles. A round of links in which others had the machine is taken
again, and a row says how many were disturbed all the same (docs/speed.md). Everything runs on loopback in a
directory of its own and is ended by pid. `--quick` measures for less time, `--otp 27` on one release only.
"""
