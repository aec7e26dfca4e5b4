# SPDX-License-Identifier: Apache-2.0
# verify and inspect on a .glowq folder: sound as written; every kind of damage is found and named.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
calibrate_tiny good.glowq || fail "calibrate: $(why)"
expect 0 "good.glowq: sound" alone verify good.glowq
expect 0 '"sound": true' alone verify good.glowq --json
expect 0 "sound" ranks 2 verify good.glowq

flip_middle() { # FILE: one bit
    python3 - "$1" <<'END'
import os, sys
size = os.path.getsize(sys.argv[1])
with open(sys.argv[1], "r+b") as f:
    f.seek(size // 2)
    b = f.read(1)[0]
    f.seek(size // 2)
    f.write(bytes([b ^ 4]))
END
}

# One flipped bit in each file, in its middle; a truncated file; a missing one.
for file in layers/0000.h5 layers/0001.h5 head.h5 model.h5 config.json tokenizer.json manifest.json; do
    rm -rf bad.glowq && cp -r good.glowq bad.glowq
    flip_middle "bad.glowq/$file"
    "$GLOWQ" verify bad.glowq >out 2>err
    same $? 3 "exit code of verify with a flipped bit in $file"
    grep -q "${file##*/}" err || fail "verify doesn't name $file: $(head -n 2 err)"
    grep -q "sound$" out && fail "verify calls a flipped bit in $file sound"
done
for change in "truncate -s -1" "rm"; do
    rm -rf bad.glowq && cp -r good.glowq bad.glowq
    $change bad.glowq/layers/0001.h5
    "$GLOWQ" verify bad.glowq >out 2>err
    code=$?
    case $code in 1 | 3) ;; *) fail "$change: verify ends with $code" ;; esac
    grep -q "0001.h5" err || fail "$change: verify doesn't name the file: $(head -n 2 err)"
    # nothing computes with it either
    "$GLOWQ" eval --model bad.glowq --text "$GOLDEN/text.txt" --ctx 64 >out 2>err
    code=$?
    case $code in 1 | 3) ;; *) fail "$change: eval ends with $code" ;; esac
    grep -q "0001.h5" err || fail "$change: eval doesn't name the file: $(head -n 2 err)"
done
# Statistics, which no manifest lists: a flipped bit, a truncated file.
calibrate_tiny kept.glowq --keep-stats || fail "calibrate --keep-stats: $(why)"
expect 0 "kept.glowq: sound" alone verify kept.glowq
flip_middle kept.glowq/stats/0001.h5
expect 3 "stats/0001.h5" alone verify kept.glowq
truncate -s -1 kept.glowq/stats/0000.h5
expect 3 "stats/0000.h5" alone verify kept.glowq
expect 1 "nowhere" alone verify nowhere.glowq

# inspect sees the same facts as the manifest, and every dataset of a layer's file.
expect 0 "gate_up" alone inspect good.glowq
same "$(grep -c '^ *[01] \(qkv\|o\|gate_up\|down\) ' out)" 8 "groups that inspect lists"
expect 0 '"kind": "glowq"' alone inspect good.glowq --json
python3 -c 'import json; assert json.load(open("out"))["manifest"] == json.load(open("good.glowq/manifest.json"))' ||
    fail "inspect --json isn't the manifest"
expect 0 "codes" alone inspect good.glowq/layers/0000.h5
for name in q_proj k_proj v_proj o_proj gate_proj up_proj down_proj; do
    grep -q "^modules/$name/codes  *u8" out || fail "inspect doesn't list the codes of $name"
done
grep -q "^groups/qkv/B  *bf16 *\[8, 64\]" out || fail "inspect doesn't list B of qkv as bf16 [8, 64]"
expect 0 '"kind": "hdf5"' alone inspect good.glowq/model.h5 --json
python3 -c 'import json; assert json.load(open("out"))["objects"]' || fail "inspect of model.h5 is empty"
cp "$GOLDEN/text.txt" text.h5
expect 3 "text.h5" alone inspect text.h5
expect 0 "tensors," alone inspect "$TINY"
same "$(grep -c '^model\.layers\.' out)" 18 "layer tensors that inspect lists"
finish
