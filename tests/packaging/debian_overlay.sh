#!/bin/sh
# debian_overlay.sh CHECKOUT PACKAGE WORK LIFE: runs LIFE in a copy of this machine without the checkout. It is called
# in mount, pid and network namespaces of its own: all of it is gone when it ends.
set -eu
checkout=$1 package=$2 work=$3 life=$4

ip link set lo up
mount -t tmpfs none "$work"
mkdir "$work"/upper "$work"/work "$work"/root
mount -t overlay overlay -o lowerdir=/,upperdir="$work"/upper,workdir="$work"/work "$work"/root
cp "$package" "$work"/root/tmp/distsec.deb
cp "$life" "$work"/root/tmp/life
mount -t proc proc "$work"/root/proc
mount --bind /dev "$work"/root/dev
mount -t tmpfs none "$work/root$checkout"
exec unshare --root="$work"/root --wd=/ sh /tmp/life
