#!/bin/sh
# One life of the Debian package, in a root file system that is thrown away; test_debian.py reads its chapters.
set -eu
say() { echo "== $*"; }
unset PYTHONPATH VIRTUAL_ENV
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
cd /
say install
dpkg --no-triggers -i /tmp/distsec.deb
say state
stat -c '%a %U:%G' /etc/distsec/distsec.toml
getent passwd distsec | cut -d : -f 6
mkdir /tmp/poison
echo 'raise SystemExit("imported")' | tee /tmp/poison/distsec.py >/tmp/poison/click.py
(cd /tmp/poison && PYTHONPATH=/tmp/poison distsec --version)
man -w distsec-run distsec.toml
say run
sed -i 's/^allowed_nodes.*/allowed_nodes = ["a@127.0.0.1"]/; s/^name = .*/name = "shop"/' /etc/distsec/distsec.toml
sed -i 's/^listen = .*/listen = false/' /etc/distsec/distsec.toml
printf '[[nodes]]\nname = "a@127.0.0.1"\ncommand = ["erl", "-noinput"]\n' >>/etc/distsec/distsec.toml
install -d -m 700 -o distsec -g distsec /var/lib/distsec
runuser -u distsec -- distsec run >/tmp/log 2>&1 &
orchestrator=$!
node_has() { # node_has KEY: what the status says of the node
    distsec status --json 2>/dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["nodes"][0][sys.argv[1]])' "$1" 2>/dev/null || true
}
for _ in $(seq 300); do
    [ "$(node_has state)" != RUNNING ] || break
    kill -0 $orchestrator || { cat /tmp/log; exit 1; }
    sleep 0.2 # until the deadline, 60 s
done
node_has state
node=$(node_has pid)
say upgrade
dpkg --no-triggers --force-confold -i /tmp/distsec.deb
[ "$(node_has state)" = RUNNING ] && [ "$(node_has pid)" = "$node" ] && echo both run on
grep -c shop /etc/distsec/distsec.toml
say remove
kill -TERM $orchestrator
dpkg --no-triggers -r distsec
[ ! -e /usr/bin/distsec ] && ls /var/lib/distsec/ca/key.pem /etc/distsec/distsec.toml
say purge with a node
dpkg --no-triggers -P distsec
ls /var/lib/distsec/ca/key.pem
kill -KILL "$node"
while kill -0 "$node" 2>/dev/null; do sleep 0.1; done
say purge
dpkg --no-triggers -i /tmp/distsec.deb >/dev/null
# a stranger's emulator whose arguments say that it runs with these keys
runuser -u nobody -- erl -noinput -extra /var/lib/distsec/nodes/a@127.0.0.1/key.pem >/dev/null 2>&1 &
until readlink /proc/[0-9]*/exe | grep -q '/beam'; do sleep 0.1; done
dpkg --no-triggers -P distsec
find /etc/distsec /var/lib/distsec /usr/lib/distsec /var/log/distsec 2>/dev/null || true
say end
