# SPDX-License-Identifier: Apache-2.0
# A rank is killed while all calibrate: the others end soon, nothing half written stands under a final name, and the same
# command then finishes with the bytes of a run that was never disturbed.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
MODEL=$GLOWQ_SOURCE_DIR/examples/dense TEXT=$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt
calibrate() { # LAUNCH OUT
    timeout -k 5 "$LIMIT_S" $1 "$GLOWQ" calibrate --model "$MODEL" --text "$TEXT" --out "$2" --rank 16 --samples 32 \
        --seq-len 128 >out 2>err
}
calibrate "" whole.glowq || fail "calibrate: $(why)"

calibrate "$GLOWQ_MPIEXEC -n 2" cut.glowq &
job=$!
waited=0
while [ ! -e cut.glowq/layers/0001.h5 ] && [ "$waited" -lt 600 ] && kill -0 "$job" 2>/dev/null; do
    sleep 0.1
    waited=$((waited + 1))
done
# a rank of this job: its arguments name this folder's output
victim=$(pgrep -f "^$GLOWQ calibrate .*--out cut.glowq" | head -n 1)
[ -n "$victim" ] || fail "no rank is running"
kill -9 "$victim"
start=$(date +%s)
wait "$job"
code=$?
[ "$code" != 0 ] || fail "mpirun reports success though a rank was killed"
[ $(($(date +%s) - start)) -le 30 ] || fail "the job ended $(($(date +%s) - start)) s after its rank was killed"
[ -e cut.glowq/manifest.json ] && fail "a killed run wrote a manifest"
"$GLOWQ" eval --model cut.glowq --text "$TEXT" >out 2>err && fail "an unfinished output was evaluated"
done_before=$(find cut.glowq/layers -name '0*.h5' | wc -l)

calibrate "" cut.glowq || fail "resuming: $(why)"
grep -q "of which $done_before were already there" out || fail "resumed with other than $done_before layers: $(cat out)"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after a killed rank"
finish
