# SPDX-License-Identifier: Apache-2.0
# kill.sh [ROUNDS]: a random rank of a calibration, on a random grid of one to three, is killed at ROUNDS (default 6) random moments. The
# same command, on another grid and in other waves, goes on from there until a run isn't killed in time: that one's bytes, the statistics'
# too, are those of a run that was never disturbed, and nothing else stays behind.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep
ROUNDS=${1:-6}
random() { echo $(($(od -An -N4 -tu4 /dev/urandom) % $1)); }
now_ms() { date +%s%3N; }
calibrate() { # RANKS OUT, more options
    launch_on "$1"; shift
    calibrate_dense "$@" --samples 32 --keep-stats
}

start=$(now_ms)
calibrate 2 whole.glowq --hidden-every 1 || fail "calibrate: $(why)"
whole_ms=$(($(now_ms) - start))
want=$(all_bytes whole.glowq)

kills=0 finished=0 layers_kept=0
while [ "$failures" = 0 ] && { [ "$kills" -lt "$ROUNDS" ] || [ -e cut.glowq ]; }; do
    n=$(($(random 3) + 1)) every=$(random 4) before=$(n_layers cut.glowq)
    grid=1x$n
    [ "$(random 2)" = 0 ] && grid=${n}x1
    calibrate "$n" cut.glowq --hidden-every "$every" --watchdog 5 --grid "$grid" --waves "$(random 7)" &
    job=$!
    victim=""
    if [ "$kills" -lt "$ROUNDS" ]; then # where the rounds are over, the last run is left alone
        delay=$(random "$whole_ms")
        sleep "$((delay / 1000)).$(printf '%03d' $((delay % 1000)))"
        processes_of cut.glowq >ranks
        victim=$(sed -n "$(($(random "$n") + 1))p" ranks)
    fi
    [ -n "$victim" ] && kill -KILL "$victim" 2>/dev/null && kills=$((kills + 1))
    wait "$job"
    code=$?
    waited=0
    while processes_of cut.glowq >ranks && [ "$waited" -lt 100 ]; do sleep 0.1; waited=$((waited + 1)); done
    [ -s ranks ] && fail "ranks stay behind after a kill: $(cat ranks)"
    after=$(n_layers cut.glowq)
    [ "$after" -ge "$before" ] || fail "$before layers before a run, $after after it"
    if [ "$code" != 0 ]; then
        [ -n "$victim" ] || fail "a run that nobody killed ended with exit code $code: $(why)"
        [ -e cut.glowq/manifest.json ] && [ ! -e cut.glowq/model.h5 ] && fail "a manifest without model.h5"
        [ -e cut.glowq/manifest.json ] || continue # killed behind its end: it is whole all the same
    fi
    finished=$((finished + 1)) layers_kept=$((layers_kept + before))
    same "$(all_bytes cut.glowq)" "$want" "bytes after $kills kills"
    [ "$code" = 0 ] && same "$(find cut.glowq -name '.*.tmp' -o -name hidden)" "" "what is left in a finished folder"
    "$GLOWQ" verify cut.glowq >out 2>err || fail "verify: $(why)"
    rm -rf cut.glowq
done
echo "$kills kills of a rank, $finished calibrations finished, $layers_kept of their layers were there from killed runs"
finish
