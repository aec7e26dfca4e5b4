# SPDX-License-Identifier: Apache-2.0
# lost_rank.sh [ROUNDS]: at ROUNDS (default 3) random moments of a calibration on three ranks, of one stage or of three, a random rank
# is killed, stops or exits, in turn: the job ends soon, with an error; no rank stays behind, nothing unfinished passes for a whole;
# and the same command, on other ranks and another grid, then finishes with the bytes of a run that was never disturbed.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep
ROUNDS=${1:-3} WATCHDOG_S=3 SOON_S=45
random() { echo $(($(od -An -N4 -tu4 /dev/urandom) % $1)); }
now_ms() { date +%s%3N; }
calibrate() { # RANKS OUT, more options
    launch_on "$1"; shift
    calibrate_dense "$@" --samples 32
}
shape() { # of N ranks: "1xN" or "Nx1", and any number of waves
    case $(random 2) in
    0) echo "--grid 1x$1 --waves $(random 4)" ;;
    1) echo "--grid ${1}x1 --waves $(random 4)" ;;
    esac
}

# lose KIND: loses one rank of a calibration of cut.glowq. lost=0: it was over before.
lose() {
    kind=$1 lost=0 shape=$(shape 3)
    calibrate 3 cut.glowq --watchdog "$WATCHDOG_S" $shape &
    job=$! delay=$(random "$whole_ms")
    sleep "$((delay / 1000)).$(printf '%03d' $((delay % 1000)))"
    processes_of cut.glowq >ranks
    victim=$(sed -n "$(($(random 3) + 1))p" ranks)
    start=$(date +%s)
    [ -n "$victim" ] && case $kind in
    killed) kill -KILL "$victim" ;;
    stops) kill -STOP "$victim" ;;
    exits) kill -INT "$victim"; sleep 0.05; kill -INT "$victim" ;; # the second ends it at once
    esac 2>/dev/null
    wait "$job"
    code=$? took=$(($(date +%s) - start)) after=$(n_layers cut.glowq)
    waited=0
    while processes_of cut.glowq >ranks && [ "$waited" -lt 100 ]; do sleep 0.1; waited=$((waited + 1)); done
    [ -s ranks ] && { fail "ranks stay behind after one $kind: $(tr '\n' ' ' <ranks)"; kill -KILL $(cat ranks); }
    [ "$code" = 0 ] && return
    [ -n "$victim" ] || { fail "a run that lost no rank ended with exit code $code: $(why)"; return; }
    lost=1
    echo "$shape: a rank $kind after $delay ms and $after layers: exit code $code after $took s"
    [ "$took" -le "$SOON_S" ] || fail "the job ended $took s after a rank $kind"
    [ -e cut.glowq/manifest.json ] && return # lost behind its end: it is whole all the same
    if [ "$kind" = stops ]; then
        same "$code" 6 "exit code after a rank stopped"
        grep -q -e "gives no sign of life for" -e "not all ranks have started" err || fail "nothing is said: $(why)"
    fi
    [ -d cut.glowq ] || return
    "$GLOWQ" eval --model cut.glowq --text "$DENSE_TEXT" >out 2>err && fail "an unfinished output was evaluated"
}

# finish_cut: the same bytes, from what is there.
finish_cut() {
    before=$(n_layers cut.glowq)
    if [ ! -e cut.glowq/manifest.json ]; then
        n=$(($(random 3) + 1))
        calibrate "$n" cut.glowq $(shape "$n") || fail "resuming: $(why)"
        [ "$before" = 0 ] || grep -q "of which $before were already there" out ||
            fail "resumed with other than $before layers: $(cat out)"
    fi
    same "$(bytes_of cut.glowq)" "$want" "bytes after a lost rank"
    rm -rf cut.glowq
}

# A rank that stops before it meets the others, when there is no watchdog yet.
cat >late.sh <<'END'
[ "${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}" = 1 ] && { echo $$ >late.pid; kill -STOP $$; }
exec "$@"
END
meet_late() { timeout -k 5 "$LIMIT_S" "$GLOWQ_MPIEXEC" -n 3 sh late.sh "$GLOWQ" doctor >out 2>err; }
export GLOWQ_START_TIMEOUT=3
expect 6 "not all ranks have started within GLOWQ_START_TIMEOUT seconds" meet_late
waited=0
while kill -0 "$(cat late.pid)" 2>/dev/null && [ "$waited" -lt 100 ]; do sleep 0.1; waited=$((waited + 1)); done
kill -KILL "$(cat late.pid)" 2>/dev/null && fail "the stopped rank stays behind"

export GLOWQ_START_TIMEOUT=20
start=$(now_ms)
calibrate 3 whole.glowq || fail "calibrate: $(why)"
whole_ms=$(($(now_ms) - start))
want=$(bytes_of whole.glowq)
round=0 late=0 kept=0
while [ "$round" -lt "$ROUNDS" ] && [ "$failures" = 0 ]; do
    case $((round % 3)) in
    0) lose killed ;;
    1) lose stops ;;
    2) lose exits ;;
    esac
    round=$((round + lost)) late=$((late + 1 - lost)) kept=$((kept + lost * $(n_layers cut.glowq)))
    finish_cut
done
echo "$round ranks lost, $late times too late, $kept layers kept for the runs that finished"
finish
