# SPDX-License-Identifier: Apache-2.0
# calibrate: the same bytes for any number of ranks and on repetition, resuming, refusals, and what is left on disk.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3

# Same bytes on 1 to 4 ranks, for both solvers and several widths; another seed or text gives others.
for settings in "--bits 4" "--bits 3 --solver qr-rsvd" "--bits 2 --group-size 0 --factor-dtype f16 --exact-energy" \
    "--bits 8 --rank 0" "--bits 4 --solver qr-rsvd --qr householder --damp median"; do
    same_on "1 2 3 4" r calibrate_tiny --overwrite $settings
    calibrate_tiny r1.glowq --overwrite $settings --threads 2 || fail "$settings again"
    same "$(bytes_of r1.glowq)" "$same_bytes" "bytes of $settings on repetition with 2 threads"
done
calibrate_tiny seed0.glowq --quiet && [ -s err ] && fail "--quiet talks: $(cat err)"
python3 - out <<'END' || fail "calibrate --json lacks facts"
import json
r = json.load(open("out"))
assert r["schema_version"] == 1 and r["n_layers"] == 2 and r["n_resumed"] == 0 and r["n_sequences"] == 12
assert r["weight_bytes"] > r["quantized_bytes"] > 0 and r["factor_bytes"] > 0 and 0 < r["energy"] < 1
END
calibrate_tiny seed1.glowq --seed 1
[ "$(bytes_of seed0.glowq)" != "$(bytes_of seed1.glowq)" ] || fail "another seed gives the same bytes"
for file in manifest.json run.json report.html model.h5 head.h5 config.json tokenizer.json layers/0000.h5 layers/0001.h5; do
    [ -s "seed0.glowq/$file" ] || fail "no $file in the output"
done
same "$(find seed0.glowq -name '.*' -type f ! -name '.lock*' | wc -l)" 0 "temporary files left"

# A finished output of the same settings is complete, on any number of ranks, and isn't touched; of others it is refused, by what
# differs; --overwrite takes it.
before=$(bytes_of seed0.glowq)
everything() { (cd seed0.glowq && find . -type f ! -name '.lock*' -exec sha256sum {} + -printf '%T@ %p\n' | sort | sha256sum); }
all_before=$(everything)
for LAUNCH in "" "$GLOWQ_MPIEXEC -n 3"; do
    expect 0 '"n_resumed": 2' calibrate_tiny seed0.glowq
    expect 2 "seed0.glowq is finished, of other settings: --bits 4 (asked for: 3), --exact-energy false (asked for: true):" \
        calibrate_tiny seed0.glowq --bits 3 --exact-energy
    grep -q "give --overwrite to replace it" err || fail "a refusal doesn't say what to do: $(why)"
done
LAUNCH=""
timeout "$LIMIT_S" "$GLOWQ" calibrate --model "$TINY" --text "$GOLDEN/text.txt" --out seed0.glowq --rank 8 --group-size 64 \
    --samples 12 --seq-len 64 >out 2>err || fail "calibrate, finished: $(why)"
same "$(cut -d: -f1 out)" "seed0.glowq is complete already" "what is said of a finished output"
expect 2 "another text" calibrate_tiny seed0.glowq --text "$DENSE_TEXT"
expect 2 "--rank 8 (asked for: 9)" calibrate_tiny seed0.glowq --rank 9
expect 2 "without the statistics of layer 0" calibrate_tiny seed0.glowq --keep-stats
same "$(everything)" "$all_before" "a finished output after it was asked for again"
expect 0 '"n_resumed": 0' calibrate_tiny seed0.glowq --overwrite
same "$(bytes_of seed0.glowq)" "$before" "bytes of a finished output made again"
# What it has lost since is made again.
for lost in layers/0001.h5 config.json model.h5; do
    rm "seed0.glowq/$lost"
    expect 0 "seed0.glowq was finished: what is missing or damaged is made again" calibrate_tiny seed0.glowq
    same "$(bytes_of seed0.glowq)" "$before" "bytes after $lost was lost"
    cmp "seed0.glowq/config.json" "$TINY/config.json" || fail "another config.json after $lost was lost"
done
# Somebody else's folder gets nothing of ours.
mkdir theirs && echo '{"name": "a web page"}' >theirs/manifest.json
expect 2 "theirs: not a result to go on with: theirs/manifest.json: format" calibrate_tiny theirs
same "$(cd theirs && find . | sort | tr '\n' ' ')" ". ./manifest.json " "files in somebody else's folder"
rm seed0.glowq/manifest.json seed0.glowq/model.h5
expect 2 "--overwrite" calibrate_tiny seed0.glowq --bits 3
[ -e seed0.glowq/manifest.json ] && fail "a refused run wrote a manifest"

# The same command again goes on where the last one stopped, on another number of ranks, and ends with the same bytes.
rm seed0.glowq/layers/0000.h5
launch_on 2
expect 0 n_resumed calibrate_tiny seed0.glowq
LAUNCH=""
same "$(field n_resumed)" 1 "layers resumed"
same "$(bytes_of seed0.glowq)" "$before" "bytes after resuming"
# A damaged layer isn't taken for a finished one.
rm seed0.glowq/manifest.json seed0.glowq/model.h5
printf 'x' | dd of=seed0.glowq/layers/0001.h5 bs=1 seek=9000 conv=notrunc 2>/dev/null
expect 0 n_resumed calibrate_tiny seed0.glowq
same "$(field n_resumed)" 1 "layers resumed beside a damaged one"
same "$(bytes_of seed0.glowq)" "$before" "bytes after a damaged layer was made again"

# Refusals name what is wrong, on one rank and on two, and leave nothing under a final name.
for LAUNCH in "" "$GLOWQ_MPIEXEC -n 2"; do
    expect 2 "rank" calibrate_tiny bad.glowq --rank 2000
    expect 2 "seq-len" calibrate_tiny bad.glowq --seq-len 1000
    expect 1 "nowhere.txt" calibrate_tiny bad.glowq --text nowhere.txt
    printf 'short' >short.txt
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --model "$TINY" --text short.txt --out bad.glowq --seq-len 64 >out 2>err
    code=$?
    case $code in 2 | 3) ;; *) fail "exit $code for a text shorter than one sequence" ;; esac
    grep -q "short.txt\|tokens\|sequence" err || fail "a short text isn't explained: $(cat err)"
    [ -e bad.glowq/manifest.json ] && fail "a refused run wrote a manifest"
    [ "$(find bad.glowq -name '*.h5' 2>/dev/null | wc -l)" = 0 ] || fail "a refused run left $(find bad.glowq -name '*.h5')"
done
finish
