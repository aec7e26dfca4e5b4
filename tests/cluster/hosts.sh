# SPDX-License-Identifier: Apache-2.0
# Two hosts made of network namespaces, Open MPI over TCP between them: a calibration on both; then one is cut off in the middle:
# every process of the job ends soon, the silent rank and its host are named, and the other host finishes alone with the same bytes.
# With ranks in the order of their hosts each host is a stage (comm/grid.h), and hidden states go between them.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need ip
need pgrep
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
MODEL=$GLOWQ_SOURCE_DIR/examples/dense TEXT=$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt
settings="--rank 32 --samples 128 --seq-len 128 --max-steps 20 --stop 0"
name=glowq$$ net=10.$(($$ / 250 % 250 + 1)).$(($$ % 250 + 1))

# A switch in a namespace of its own, so that nothing of this machine's network is touched, and two hosts on it.
hosts_up() {
    ip netns add "$name-0" || return 1
    ip -n "$name-0" link add bridge type bridge && ip -n "$name-0" link set bridge up || return 1
    for h in 1 2; do
        ip netns add "$name-$h" && ip -n "$name-$h" link set lo up || return 1
        ip link add eth0 netns "$name-$h" type veth peer name "port$h" netns "$name-0" || return 1
        ip -n "$name-0" link set "port$h" master bridge up || return 1
        ip -n "$name-$h" addr add "$net.$h/24" dev eth0 && ip -n "$name-$h" link set eth0 up || return 1
        echo "$net.$h slots=2" >>hostfile
    done
    # Stands in for ssh: called with options, a host and a command.
    cat >agent <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do
    case \$1 in -l | -p | -o | -i) shift ;; esac
    shift
done
host=\${1##*.}
shift
exec ip netns exec $name-\$host unshare --uts sh -c "hostname host\$host; exec sh -c '\$*'"
END
    chmod +x agent
}
hosts_down() { # the launcher's daemon on the host that was cut off is still there
    for h in 0 1 2; do
        for process in $(ip netns pids "$name-$h" 2>/dev/null); do kill -KILL "$process"; done
        ip netns del "$name-$h" 2>/dev/null
    done
}
trap hosts_down EXIT
trap 'exit 1' TERM INT
hosts_up 2>err || skip "no network namespaces here: $(tail -n 1 err)"

# On both hosts, two ranks each, dealt out by node or by slot.
MAP=node
calibrate() { # OUT, more options
    out_dir=$PWD/$1; shift
    timeout -k 5 "$LIMIT_S" ip netns exec "$name-1" unshare --uts sh -c 'hostname host1; exec "$@"' sh \
        "$GLOWQ_MPIEXEC" --hostfile hostfile --map-by $MAP --mca plm rsh --mca plm_rsh_agent "$PWD/agent" --mca pml ob1 \
        --mca btl self,tcp --mca btl_tcp_if_include "$net.0/24" --mca oob_tcp_if_include "$net.0/24" --mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3 -x GLOWQ_THREADS -n 4 \
        "$GLOWQ" calibrate --model "$MODEL" --text "$TEXT" --out "$out_dir" $settings "$@" >out 2>err
}

alone calibrate --model "$MODEL" --text "$TEXT" --out whole.glowq $settings || fail "calibrate: $(why)"
calibrate both.glowq || fail "calibrate on two hosts: $(why)"
grep -q "rank 1 *host2" err || fail "rank 1 isn't on host2: $(cat err)"
same "$(bytes_of both.glowq)" "$(bytes_of whole.glowq)" "bytes calibrated on two hosts"

MAP=slot
calibrate stages.glowq || fail "calibrate on two hosts, a stage each: $(why)"
grep -q "on 4 ranks as 2x2" err || fail "hosts aren't stages: $(cat err)"
same "$(bytes_of stages.glowq)" "$(bytes_of whole.glowq)" "bytes calibrated on two hosts, a stage each"

calibrate cut.glowq --watchdog 3 &
job=$!
waited=0
while [ ! -e cut.glowq/layers/0001.h5 ] && [ "$waited" -lt 600 ] && kill -0 "$job" 2>/dev/null; do
    sleep 0.1
    waited=$((waited + 1))
done
[ "$(pgrep -fc "^$GLOWQ .*--out $PWD/cut.glowq ")" = 4 ] || fail "not 4 ranks before the cut: $(why)"
ip -n "$name-0" link set port2 down # host2 is gone
start=$(date +%s)
while [ -n "$(pgrep -f "^$GLOWQ .*--out $PWD/cut.glowq ")" ] && [ $(($(date +%s) - start)) -lt 60 ]; do sleep 0.2; done
echo "every rank has ended $(($(date +%s) - start)) s after the link was cut"
[ -z "$(pgrep -f "^$GLOWQ .*--out $PWD/cut.glowq ")" ] || fail "ranks stay behind: $(cat err)"
# The launcher ends by the keepalive of its connection, unless something was under way on it: then TCP tries for 15 minutes.
while kill -0 "$job" 2>/dev/null && [ $(($(date +%s) - start)) -lt 20 ]; do sleep 0.2; done
if kill -0 "$job" 2>/dev/null; then
    echo "mpirun still waits for its daemon on the lost host 20 s after the cut"
    for process in $(pgrep -f "^$GLOWQ_MPIEXEC .*--out $PWD/cut.glowq "); do kill -KILL "$process"; done
    wait "$job"
else
    wait "$job"
    same "$?" 6 "exit code of the job that was cut in two"
    echo "mpirun has ended $(($(date +%s) - start)) s after the cut"
fi
grep -q "error: rank [23] on host2 gives no sign of life for" err || fail "the lost host isn't named: $(cat err)"
[ -e cut.glowq/manifest.json ] && fail "a job that was cut in two wrote a manifest"

# The survivor goes on with what is there.
done_before=$(find cut.glowq/layers -name '0*.h5' | wc -l)
expect 0 "of which $done_before were already there" ranks 2 calibrate --model "$MODEL" --text "$TEXT" --out cut.glowq $settings
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after one of two hosts was lost"
finish
