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

# A finished output is refused; unfinished ones of other settings too; --overwrite takes them.
before=$(bytes_of seed0.glowq)
expect 2 "--overwrite" calibrate_tiny seed0.glowq
same "$(bytes_of seed0.glowq)" "$before" "bytes after a refusal"
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
