# SPDX-License-Identifier: Apache-2.0
# kill_steps.sh [EVERY]: a calibration is killed at its 1st, then at its (1 + EVERY)th, .. write (EVERY: default 7), at each fsync,
# rename, truncation, allocation or removal of a file, and at each fsync and rename of the thread that publishes layers and statistics;
# each time from the start. The same command then finishes, to the bytes, the statistics' too, of a run that was never disturbed, and
# nothing half written is left. A disk that fails behind the computation ends the run, and nothing is told of that layer.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need strace
EVERY=${1:-7}
OPTIONS="--keep-stats --hidden-every 1 --quiet"
strace -o trace true 2>/dev/null || skip "strace may trace nothing here"
all_bytes() { echo "$(bytes_of "$1") $(cd "$1/stats" && sha256sum *.h5 | sha256sum)"; }

# kill_at EVERY CALL, strace's filters: killed counts. strace counts every call of every thread by itself.
kill_at() {
    every=$1 call=$2; shift 2
    step=1 killed=0
    while [ "$failures" = 0 ]; do
        rm -rf cut.glowq
        LAUNCH="strace -f -qq -o trace $* -e trace=$call -e inject=$call:signal=SIGKILL:when=$step"
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
        step=$((step + every))
    done
}

calibrate_tiny whole.glowq $OPTIONS || fail "calibrate: $(why)"
want=$(all_bytes whole.glowq)
for call in pwrite64 write; do
    kill_at "$EVERY" $call
    echo "$call: killed at $killed steps, the last before step $step"
    [ "$killed" -ge 1 ] || fail "no $call to kill at"
done
for call in fsync rename ftruncate fallocate unlink rmdir; do
    kill_at 1 $call
    echo "$call: killed at each of $killed"
    [ "$killed" -ge 2 ] || fail "only $killed times $call"
done
for part in layers stats; do
    paths="-P $PWD/cut.glowq/$part"
    for l in 0000 0001; do # a descriptor's path is whole, a call's as it was given
        paths="$paths -P $PWD/cut.glowq/$part/.$l.h5.tmp -P cut.glowq/$part/.$l.h5.tmp"
    done
    kill_at 1 rename $paths
    same "$killed" 2 "renames of two files of $part"
    kill_at 1 fsync $paths
    same "$killed" 4 "times that two files of $part and their folder are brought to disk"
done

for l in 0 1; do
    rm -rf cut.glowq
    LAUNCH="strace -f -qq -o trace -P $PWD/cut.glowq/layers/.000$l.h5.tmp -e trace=fsync -e inject=fsync:error=EIO"
    expect 1 "cannot fsync cut.glowq/layers/.000$l.h5.tmp" calibrate_tiny cut.glowq $OPTIONS
    LAUNCH=""
    same "$(ls -A cut.glowq/layers)" "$([ $l = 0 ] || echo 0000.h5)" "layers when the disk fails at layer $l"
    same "$(grep -c '"event":"layer"' cut.glowq/events.jsonl)" $l "layers told of when the disk fails at layer $l"
    grep -q '"event":"failed"' cut.glowq/events.jsonl || fail "a disk that failed at layer $l isn't told of"
    calibrate_tiny cut.glowq $OPTIONS || fail "resuming after the disk failed: $(why)"
    same "$(all_bytes cut.glowq)" "$want" "bytes after the disk failed at layer $l"
done
finish
