# SPDX-License-Identifier: Apache-2.0
# kill_steps.sh [EVERY]: a calibration is killed at its 1st, then at its (1 + EVERY)th, .. write, fsync, rename, truncate or removal
# of a file (EVERY: default 7), each time from the start; the same command then finishes, to the bytes, the statistics' too, of
# a run that was never disturbed, and nothing half written is left.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need strace
EVERY=${1:-7}
CALLS=pwrite64,write,fsync,rename,ftruncate,fallocate,unlink,rmdir
OPTIONS="--stats keep --hidden-every 1 --quiet"
strace -o trace true 2>/dev/null || skip "strace may trace nothing here"

calibrate_tiny whole.glowq $OPTIONS || fail "calibrate: $(why)"
want=$(all_bytes whole.glowq)
step=1 killed=0
while [ "$failures" = 0 ]; do
    rm -rf cut.glowq
    LAUNCH="strace -f -qq -o trace -e trace=$CALLS -e inject=$CALLS:signal=SIGKILL:when=$step"
    calibrate_tiny cut.glowq $OPTIONS
    code=$?
    LAUNCH=""
    [ "$code" = 0 ] && break # no more steps
    same "$code" 137 "exit code of a run killed at step $step"
    killed=$((killed + 1))
    if [ -e cut.glowq/manifest.json ]; then
        "$GLOWQ" verify cut.glowq >out 2>err || fail "killed at step $step with a manifest, but not whole: $(why)"
    else
        calibrate_tiny cut.glowq $OPTIONS || fail "resuming after step $step: $(why)"
    fi
    same "$(all_bytes cut.glowq)" "$want" "bytes after a kill at step $step"
    same "$(find cut.glowq -name '.*.tmp')" "" "temporaries after a kill at step $step"
    step=$((step + EVERY))
done
[ "$killed" -ge $((60 / EVERY)) ] || fail "only $killed steps"
echo "killed at $killed steps, the last before step $step"
finish
