# SPDX-License-Identifier: Apache-2.0
# lost_rank.sh [ROUNDS]: a rank is killed, exits or stops at a random moment while all calibrate: the others end soon, none stays
# behind, nothing half written stands under a final name, and the same command then finishes with the bytes of a run that was
# never disturbed. ROUNDS (default 3): how many are lost, one kind after the other.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep
ROUNDS=${1:-3}
random() { od -An -N2 -tu2 /dev/urandom | tr -d ' '; } # 0 .. 65535

# lose KIND RANKS: loses one rank of a calibration of cut.glowq, which goes on where the one before was cut.
lose() {
    kind=$1 n=$2 before=$(n_layers cut.glowq)
    launch_on "$n"
    calibrate_dense cut.glowq --watchdog 3 &
    job=$!
    LAUNCH=""
    wait_for_layers cut.glowq $((before + 1))
    sleep "0.$(printf '%03d' $(($(random) % 400)))"
    victim=$(processes_of cut.glowq | sed -n "$(($(random) % n + 1))p")
    [ -n "$victim" ] || { fail "$kind: no rank is running: $(why)"; return; }
    case $kind in
    killed) kill -KILL "$victim" ;;
    exits) kill -INT "$victim"; sleep 0.05; kill -INT "$victim" ;; # the second ends it at once
    stops) kill -STOP "$victim" ;;
    esac
    start=$(date +%s)
    wait "$job"
    code=$? took=$(($(date +%s) - start))
    echo "a rank of $n $kind after $(n_layers cut.glowq) layers: exit code $code after $took s"
    [ "$code" != 0 ] || fail "mpirun reports success though a rank was $kind"
    [ "$took" -le 30 ] || fail "the job ended $took s after a rank $kind"
    if [ "$kind" = stops ]; then
        same "$code" 6 "exit code after a rank stopped"
        grep -q "error: rank [0-9] on .* gives no sign of life since" err || fail "the stopped rank isn't named: $(why)"
    fi
    sleep 1
    left=$(processes_of cut.glowq)
    [ -z "$left" ] || { fail "ranks stay behind: $left"; kill -KILL $left; }
    [ -e cut.glowq/manifest.json ] && fail "a run that lost a rank wrote a manifest"
    "$GLOWQ" eval --model cut.glowq --text "$DENSE_TEXT" >out 2>err && fail "an unfinished output was evaluated"
}

calibrate_dense whole.glowq || fail "calibrate: $(why)"
round=0
while [ "$round" -lt "$ROUNDS" ] && [ "$failures" = 0 ]; do
    [ "$(n_layers cut.glowq)" -lt 4 ] || rm -rf cut.glowq
    case $((round % 3)) in
    0) lose killed 2 ;;
    1) lose stops 3 ;;
    2) lose exits 2 ;;
    esac
    done_before=$(n_layers cut.glowq)
    if [ "$done_before" -ge 4 ] || [ "$round" = $((ROUNDS - 1)) ]; then
        calibrate_dense cut.glowq || fail "resuming: $(why)"
        grep -q "of which $done_before were already there" out ||
            fail "resumed with other than $done_before layers: $(cat out)"
        same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after a lost rank"
    fi
    round=$((round + 1))
done
finish
