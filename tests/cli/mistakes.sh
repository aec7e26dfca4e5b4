# SPDX-License-Identifier: Apache-2.0
# The first hour with the program: defaults that go with any model, and what is said of paths and texts that won't do.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"

# What wasn't asked for adapts to the model, which takes 512 positions; what was asked for doesn't.
calibrate_short() { # OUT, more options
    out_dir=$1; shift
    alone calibrate --model "$DENSE" --text "$DENSE_TEXT" --out "$out_dir" --samples 2 --rank 0 "$@"
}
expect 0 "windows of 512 tokens, all that this model takes" calibrate_short usual.glowq
expect 0 "2 sequences of 512 tokens" calibrate_short asked.glowq --seq-len 512
grep -q "windows of" err && fail "a length that was asked for is remarked on"
same "$(bytes_of usual.glowq)" "$(bytes_of asked.glowq)" "bytes of the usual length and of the same one asked for"
expect 2 "--seq-len 513: this model takes up to 512" calibrate_short long.glowq --seq-len 513
expect 2 "--seq-len 1: a window has at least 2" calibrate_short short.glowq --seq-len 1
[ -e long.glowq ] || [ -e short.glowq ] && fail "a refused calibration leaves a folder"
expect 0 "64 x 512 tokens" alone plan --model "$DENSE"
expect 0 "windows of 512" alone plan --model "$DENSE" --json
same "$(field seq_len)" 512 "seq_len of a plan"
same "$(field n_tokens)" 32768 "n_tokens of a plan"
expect 2 "--seq-len 513" alone plan --model "$DENSE" --seq-len 513
expect 0 "64 x 2048 tokens" alone plan --synthetic "$GLOWQ_SOURCE_DIR/examples/shapes/llama-3.2-1b.json" --layers 1
expect 0 "448 tokens read, 64 written" alone bench --model "$DENSE" --batch 1 --repeat 1
expect 2 "--prompt 512 and --generate 64" alone bench --model "$DENSE" --batch 1 --repeat 1 --prompt 512
expect 2 "--generate 600" alone bench --model "$DENSE" --batch 1 --repeat 1 --generate 600

# Planned for this machine because no other was named: that is said where it has no room.
expect 4 "--host-memory, --gpu-memory: of the machines planned for" alone plan --samples 16000000 \
    --synthetic "$GLOWQ_SOURCE_DIR/examples/shapes/llama-3.1-405b.json"
expect 4 "or more memory" alone plan --synthetic "$GLOWQ_SOURCE_DIR/examples/shapes/llama-3.1-405b.json" --host-memory 1
grep -q "machines planned for" err && fail "a machine that was named is asked for"

# Folders of another kind, said once whatever the number of ranks.
tell() { alone "$@" --model "$model" --text "$DENSE_TEXT"; }
model=nowhere
expect 1 "nowhere: no such folder; --model takes a Hugging Face folder" tell calibrate --out x.glowq
expect 1 "nowhere: no such folder; --model takes a Hugging Face or a .glowq folder" tell eval
expect 1 "nowhere: no such folder" alone serve --model nowhere
expect 1 "nowhere: no such folder" ranks 3 eval --model nowhere --text "$DENSE_TEXT"
same "$(grep -c "no such folder" err)" 1 "times that a missing folder is told of on 3 ranks"
model=usual.glowq
expect 3 "usual.glowq: a .glowq folder, whose weights are quantized already" tell calibrate --out x.glowq
expect 3 "quantized already" tell plan
expect 0 "KV tokens" alone plan --serve --model usual.glowq
mkdir -p "cache dir/models--ü/snapshots/1" "cache dir/models--ü/blobs" empty
for f in "$DENSE"/*; do
    cp "$f" "cache dir/models--ü/blobs/$(basename "$f").sum"
    ln -s "../../blobs/$(basename "$f").sum" "cache dir/models--ü/snapshots/1/$(basename "$f")"
done
model="cache dir/models--ü"
expect 1 "one of the folders in cache dir/models--ü/snapshots" tell calibrate --out x.glowq
model="cache dir/models--ü/snapshots/1"
expect 0 "2 sequences of 64" tell calibrate --out "a result ü.glowq" --samples 2 --seq-len 64 --rank 0
mkdir -p unfinished/layers
model=unfinished
expect 3 "unfinished: a calibration that isn't finished" tell eval
model=empty
expect 1 "empty: no config.json" tell calibrate --out x.glowq
expect 1 "--synthetic $DENSE: a folder" alone plan --synthetic "$DENSE"
expect 1 "usual.glowq/stats/0000.h5: no statistics here" alone solve --stats usual.glowq --model "$DENSE" --out x.glowq
expect 1 "nowhere: no such folder" alone solve --stats nowhere --model "$DENSE" --out x.glowq
calibrate_short kept.glowq --keep-stats || fail "calibrate --keep-stats: $(why)"
expect 3 "statistics of another model" alone solve --stats kept.glowq --model "$GLOWQ_SOURCE_DIR/examples/moe" --out x.glowq
expect 1 "$DENSE: not a .glowq folder" alone verify "$DENSE"
same "$(grep -c error err)" 1 "errors for a folder of another kind"
expect 3 "a checkpoint's folder" alone status "$DENSE"

# A result is never put into the checkpoint's own folder.
cp -r "$DENSE" checkpoint
before=$(cd checkpoint && ls -A && sha256sum ./* | sha256sum)
expect 2 "--out checkpoint: a checkpoint's folder" alone calibrate --model checkpoint --text "$DENSE_TEXT" --out checkpoint \
    --overwrite --samples 2
same "$(cd checkpoint && ls -A && sha256sum ./* | sha256sum)" "$before" "a checkpoint that was given as --out"

# Texts: the file is named, and the cause told once.
printf 'caf\303' >half.txt
printf '\251 noir' >rest.txt
printf 'abc\377def' >latin.txt
for command in eval "calibrate --out x.glowq"; do
    expect 1 "cannot open nowhere.txt" alone $command --model "$DENSE" --text nowhere.txt
    expect 1 "--text empty: a folder" alone $command --model "$DENSE" --text empty
    expect 3 "latin.txt: " alone $command --model "$DENSE" --text latin.txt
    grep -q "byte 0xFF at offset 3 of 7" err || fail "$command: the byte isn't told: $(why)"
    same "$(grep -c error err)" 1 "errors for a text that isn't UTF-8"
done
expect 3 "half.txt: not UTF-8" alone eval --model "$DENSE" --text half.txt
expect 3 "half.txt: not UTF-8" alone eval --model "$DENSE" --text half.txt --text latin.txt
expect 0 "perplexity" alone eval --model "$DENSE" --protocol windows --text half.txt --text rest.txt # joined byte by byte

# What all ranks meet alike is told once, what each meets in its own part by each.
n_errors() { grep -c "glowq: error" err; }
cp -r "$DENSE" torn && rm torn/model.safetensors && head -c 100000 "$DENSE/model.safetensors" >torn/model.safetensors
cp -r "$DENSE" wordless && echo '{}' >wordless/tokenizer.json
for command in "calibrate --out x.glowq --text $DENSE_TEXT" "eval --text $DENSE_TEXT" "generate --prompt hi"; do
    expect 3 "torn/model.safetensors: tensor model.embed_tokens.weight: data_offsets" ranks 3 $command --model torn
    same "$(n_errors)" 1 "errors of a torn checkpoint on 3 ranks: $command"
    expect 3 "wordless/tokenizer.json: \"model\" must be an object [rank 0" ranks 3 $command --model wordless
    same "$(n_errors)" 1 "errors of a broken tokenizer on 3 ranks: $command"
done
cp -r usual.glowq hurt.glowq
for at in 60000 200000; do # rows of v_proj that rank 0 has, and of gate_proj that rank 1 has
    printf 'xyz' | dd of=hurt.glowq/layers/0003.h5 bs=1 seek=$at conv=notrunc 2>/dev/null
done
expect 3 "rank 0 (1 of 2 ranks): hurt.glowq/layers/0003.h5: /modules/v_proj/codes: block 0" ranks 2 generate --model hurt.glowq \
    --prompt hi
grep -q "rank 1 (1 of 2 ranks): hurt.glowq/layers/0003.h5: /modules/gate_proj/codes: block 10" err ||
    fail "damage that rank 1 alone meets isn't told: $(why)"
same "$(n_errors)" 2 "errors of damage that differs"

# One window has no spread: no standard error is made up for it.
expect 0 "one window: no standard error" alone eval --model "$DENSE" --text "$DENSE_TEXT" --max-tokens 512
expect 0 '"nll_stderr": null' alone eval --model "$DENSE" --text "$DENSE_TEXT" --max-tokens 512 --json
expect 0 "scored in 2 windows" alone eval --model "$DENSE" --text "$DENSE_TEXT" --max-tokens 1024
grep -q "no standard error" out && fail "two windows have a standard error"

# On a terminal the remark at the end doesn't go on in the text's last line.
timeout -k 5 "$LIMIT_S" "$GLOWQ" generate --model "$DENSE" --prompt "The old" --max-tokens 5 >both 2>&1
grep -q "^[0-9]* prompt tokens\{0,1\} in" both || fail "the text and the remark share a line"

[ ! -e x.glowq ] || fail "a refused run leaves a folder"
finish
