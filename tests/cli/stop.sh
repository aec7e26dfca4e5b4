# SPDX-License-Identifier: Apache-2.0
# Signals: USR1 and TERM stop a calibration after the layer under way, on all ranks, with exit code 75; the same command goes
# on, on another number of ranks, to the bytes of a run that was never disturbed. Other commands end by them.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep

# stop RANKS PROGRAM SIGNAL...: sends them to the first process of PROGRAM once another layer is there. The job's code: $code.
stop() {
    program=$2 before=$(n_layers cut.glowq)
    launch_on "$1"; shift 2
    calibrate_dense cut.glowq &
    job=$!
    LAUNCH=""
    wait_for_layers cut.glowq $((before + 1))
    for signal in "$@"; do
        kill -s "$signal" "$(processes_of cut.glowq "$program" | head -n 1)" || fail "nobody to send $signal to: $(why)"
        sleep 0.05
    done
    wait "$job"
    code=$?
}
stopped_by() { # SIGNAL: what has to hold after a clean stop
    same "$code" 75 "exit code after $1"
    grep -q "stopped by SIG$1 after [0-9] of 6 layers; the same command goes on" err || fail "$1 isn't told: $(why)"
    same "$(grep -c "stopped by" err)" 1 "times that a stop by $1 is told"
    same "$(find cut.glowq -name '.*' -type f | wc -l)" 0 "temporary files after $1"
    [ -e cut.glowq/manifest.json ] && fail "a run stopped by $1 wrote a manifest"
}

calibrate_dense whole.glowq || fail "calibrate: $(why)"
stop 1 "$GLOWQ" USR1 && stopped_by USR1
stop 3 "$GLOWQ_MPIEXEC" USR1 && stopped_by USR1 # mpirun hands it to every rank
[ "$(n_layers cut.glowq)" -ge 2 ] || fail "$(n_layers cut.glowq) layers after two stops"
calibrate_dense cut.glowq || fail "resuming: $(why)"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after two stops"
rm -r cut.glowq
stop 2 "$GLOWQ" TERM && stopped_by TERM # one rank alone
rm -r cut.glowq
stop 1 "$GLOWQ" TERM TERM # the shell makes its background ignore INT
same "$code" 143 "exit code after two TERM" # 128 + SIGTERM: at once
launch_on 2
calibrate_dense cut.glowq || fail "resuming: $(why)"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after stops"

# Nothing to resume, nothing to wait for.
"$GLOWQ" eval --model "$DENSE" --text "$DENSE_TEXT" >out 2>err &
job=$!
sleep 0.5
kill -s TERM "$job"
wait "$job"
same "$?" 143 "exit code of eval after TERM"
finish
