#!/usr/bin/env bash
# Two hosts on one machine: network, UTS and mount namespaces with names and addresses of their own, joined by a veth
# pair. Runs `trine launch` on the first one, with a launch agent that enters the second, and MPI over TCP only.
#
#     tests/two-hosts.sh TRINE RANKS_EACH [--cut FILE PATTERN] -- LAUNCH_ARGS… -- TRAIN_ARGS…
#
# With --cut, the link goes down as soon as PATTERN stands in FILE. Needs root, util-linux and iproute2.
set -euo pipefail

trine=$(realpath "$1")
each=$2
shift 2
cut_file=""
if [ "$1" = --cut ]; then
    cut_file=$2
    cut_pattern=$3
    shift 3
fi
[ "$1" = -- ] || { echo "two-hosts: usage: TRINE RANKS_EACH [--cut FILE PATTERN] -- ARGS" >&2; exit 2; }
shift

work=$(mktemp -d)
holders=()
clean() {
    # The namespaces end with the processes that hold them.
    for holder in "${holders[@]}"; do kill -KILL "$holder" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT

printf '127.0.0.1 localhost\n10.77.0.1 nodea\n10.77.0.2 nodeb\n' >"$work/hosts"

# host NAME: starts what holds the namespaces of a host.
host() {
    # shellcheck disable=SC2016
    unshare --net --uts --mount sh -c 'mount --bind "$1/hosts" /etc/hosts && hostname "$2" && ip link set lo up &&
        touch "$1/$2.ready" && exec sleep infinity' sh "$work" "$1" </dev/null >/dev/null 2>&1 &
    holders+=($!)
    disown
    echo $! >"$work/$1.pid"
    for _ in $(seq 100); do [ -e "$work/$1.ready" ] && return; sleep 0.05; done
    echo "two-hosts: no namespaces: they need root" >&2
    exit 2
}
# on NAME COMMAND…: runs a command there.
on() {
    local name=$1
    shift
    nsenter --target "$(cat "$work/$name.pid")" --net --uts --mount --wd="$PWD" "$@"
}

host nodea
host nodeb
# The pair is made on the first host; one end moves to the second.
on nodea ip link add link0 type veth peer name link1 netns "$(cat "$work/nodeb.pid")"
on nodea ip address add 10.77.0.1/24 dev link0
on nodea ip link set link0 up
on nodeb ip address add 10.77.0.2/24 dev link1
on nodeb ip link set link1 up

# What mpirun calls instead of ssh: AGENT HOST COMMAND….
cat >"$work/agent" <<AGENT
#!/bin/sh
host=\$1
shift
exec nsenter --target "\$(cat "$work/\$host.pid")" --net --uts --mount --wd="$PWD" sh -c "\$*"
AGENT
chmod +x "$work/agent"

if [ -n "$cut_file" ]; then
    (
        until grep -q "$cut_pattern" "$cut_file" 2>/dev/null; do sleep 0.02; done
        on nodea ip link set link0 down
        date +%s.%N >"$cut_file.cut"
    ) &
    holders+=($!)
    disown
fi

mpirun_args=()
for arg in --host "nodea:$each,nodeb:$each" --mca plm_rsh_agent "$work/agent" --mca btl tcp,self \
    --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24; do
    mpirun_args+=("--mpirun-arg=$arg")
done
status=0
on nodea "$trine" launch --interface 10.77.0.1 "${mpirun_args[@]}" "$@" || status=$?
exit "$status"
