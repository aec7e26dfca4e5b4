# SPDX-License-Identifier: Apache-2.0
# bench_stream.sh [LAYERS] [CONFIG] [SAMPLES] [SEQ_LEN]: a checkpoint of random weights is made on disk (bf16, CONFIG's shapes, so many
# layers) and calibrated on 2 ranks with one thread each; what each rank held, and what was read, as the kernel counts it
# (/proc/PID/status, /proc/PID/io). Both are removed. Fails where a rank held more than MAX_GB (5), the ranks together asked
# for more than the checkpoint and its embedding again for each, which both need whole, or more came from the disk than that and the
# program with its libraries, 100 MB, which a kernel may have given up. Without arguments: Llama-2-7B's shapes, 21 layers, 9 GB, which
# takes some minutes on 2 cores and 12 GB of disk.
#
#   sh tests/bench_stream.sh                                    # in the source tree, of build/glowq
#   sh tests/bench_stream.sh 6 examples/dense/config.json 4 128 # small
GLOWQ_SOURCE_DIR=${GLOWQ_SOURCE_DIR:-$(cd "$(dirname "$0")/.." && pwd)}
GLOWQ_BINARY=${GLOWQ_BINARY:-$GLOWQ_SOURCE_DIR/build/glowq}
GLOWQ_MPIEXEC=${GLOWQ_MPIEXEC:-mpiexec}
LAYERS=${1:-21} CONFIG=${2:-examples/shapes/llama-2-7b.json} SAMPLES=${3:-4} SEQ_LEN=${4:-128} MAX_GB=${MAX_GB:-5}
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
need pgrep
[ -r /proc/self/io ] || skip "this kernel counts no bytes of a process"
trap 'rm -rf model out.glowq' EXIT

python3 "$GLOWQ_SOURCE_DIR/tests/make_checkpoint.py" --config "$GLOWQ_SOURCE_DIR/$CONFIG" --layers "$LAYERS" \
    --tokenizer "$GLOWQ_SOURCE_DIR/examples/dense" --out model || { fail "no checkpoint could be made"; finish; }
again=$(python3 -c 'import json, sys; c = json.load(open(sys.argv[1])); print(2 * c["vocab_size"] * c["hidden_size"])' model/config.json)
bytes=$(stat -c %s model/*.safetensors | awk '{ sum += $1 } END { printf "%.0f", sum }')

# PID, kB: most ever held, of these anonymous, of files, shared; bytes: asked for, read from disk. Files vanish with their process.
sample() {
    for pid in $(pgrep -f "^$GLOWQ calibrate .*--out out.glowq "); do
        awk -v pid="$pid" '{ v[$1] = $2 }
            END { if ("read_bytes:" in v && "VmHWM:" in v)
                      print pid, v["VmHWM:"], v["RssAnon:"], v["RssFile:"], v["RssShmem:"], v["rchar:"], v["read_bytes:"] }' \
            "/proc/$pid/status" "/proc/$pid/io" 2>/dev/null
    done
}

"$GLOWQ_MPIEXEC" -n 2 "$GLOWQ" calibrate --model model --text "$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt" \
    --out out.glowq --threads 1 --rank 16 --samples "$SAMPLES" --seq-len "$SEQ_LEN" >out 2>err &
job=$!
while kill -0 "$job" 2>/dev/null; do
    [ -e out.glowq/model.h5 ] || sample # from there on rank 0 reads what was written, for its hashes
    sleep 0.2
done >samples
wait "$job" || fail "calibrate: $(why)"

awk -v bytes="$bytes" -v again="$again" -v max="$MAX_GB" '
    { if (!($1 in seen)) { seen[$1] = ++n; pid[n] = $1 }
      for (i = 2; i <= 7; i++) if ($i > most[$1, i]) most[$1, i] = $i }
    END {
        print "| rank | most held, GB | of it anonymous | files | shared | asked of files, GB | read from disk, GB |"
        print "|---|---|---|---|---|---|---|"
        for (r = 1; r <= n; r++) {
            p = pid[r]
            printf "| %d | %.2f | %.2f | %.2f | %.2f | %.3f | %.3f |\n", r - 1, most[p, 2] / 1e6 * 1.024, most[p, 3] / 1e6 * 1.024,
                most[p, 4] / 1e6 * 1.024, most[p, 5] / 1e6 * 1.024, most[p, 6] / 1e9, most[p, 7] / 1e9
            asked += most[p, 6]
            read += most[p, 7]
            if (most[p, 2] * 1024 > max * 1e9) bad = 1
        }
        printf "checkpoint %.3f GB, read from disk by both %.3f GB: %.3f times\n", bytes / 1e9, read / 1e9, read / bytes
        if (n != 2) exit 1
        if (read < 0.5 * bytes) exit 77 # a file system in memory, or one that has a cache of its own
        exit bad || asked > bytes + 2 * again + 4e6 || read > bytes + 2 * again + 1e8
    }' samples
code=$?
[ "$code" = 77 ] && [ "$failures" = 0 ] && skip "this file system's reads aren't counted"
same "$code" 0 "figures are as promised"
tail -n 1 out
finish
