# SPDX-License-Identifier: Apache-2.0
# Models without a checkpoint: the same bytes and digits on any number of ranks, the first layers of a model are the whole model's,
# and what is refused, before anything is loaded or written.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
SHAPES=$GLOWQ_SOURCE_DIR/examples/shapes
cat >config.json <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 384,
 "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu"}
END
made() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --synthetic config.json --out "$out_dir" --rank 8 --group-size 64 \
        --samples 12 --seq-len 64 --json "$@" >out 2>err
}

# Calibration: 1, 2 and 3 ranks; another seed; verify; the manifest says what it is.
for n in 1 2 3; do
    launch_on "$n"
    made "r$n.glowq" || fail "calibrate on $n ranks: $(why)"
    same "$(bytes_of "r$n.glowq")" "$(bytes_of r1.glowq)" "bytes on $n ranks and on 1"
done
LAUNCH=""
made other.glowq --seed 1 || fail "another seed: $(why)"
[ "$(bytes_of other.glowq)" != "$(bytes_of r1.glowq)" ] || fail "another seed gives the same bytes"
expect 0 sound alone verify r1.glowq
[ -e r1.glowq/tokenizer.json ] && fail "a synthetic model has a tokenizer"

# --layers: the same layers, fewer of them; the configuration of the output says so.
made first.glowq --layers 2 || fail "--layers 2: $(why)"
python3 - <<'END' || fail "--layers 2 differs from the first layers of the whole"
import json
whole, first = (json.load(open(d + ".glowq/manifest.json")) for d in ("r1", "first"))
assert whole["synthetic"]["layers"] == 5 and first["synthetic"]["layers"] == 2 and whole["synthetic"]["seed"] == 0
assert len(whole["groups"]) == 20 and first["groups"] == whole["groups"][:8]
assert json.load(open("first.glowq/config.json"))["num_hidden_layers"] == 2
assert all(0 < g["energy"] <= 1 and g["trace"] > 0 for g in whole["groups"])
END
expect 0 sound alone verify first.glowq
# An interrupted run is resumed.
before=$(bytes_of first.glowq)
rm first.glowq/manifest.json first.glowq/model.h5 first.glowq/layers/0000.h5
expect 0 n_resumed made first.glowq --layers 2
same "$(field n_resumed)" 1 "layers resumed"
same "$(bytes_of first.glowq)" "$before" "bytes after resuming"
# In place of a deeper model: nothing of its other layers stays.
made deep.glowq --keep-stats || fail "a deeper model: $(why)"
made deep.glowq --layers 2 --overwrite || fail "in place of a deeper model: $(why)"
for folder in layers stats; do
    same "$(ls deep.glowq/$folder | tr '\n' ' ')" "0000.h5 0001.h5 " "$folder in place of a deeper model's"
done
same "$(bytes_of deep.glowq)" "$(bytes_of first.glowq)" "bytes in place of a deeper model and alone"

# With a text, and the tokenizer beside the configuration, the output is a model like any other.
expect 0 energy alone calibrate --synthetic "$TINY/config.json" --text "$GOLDEN/text.txt" --out text.glowq --rank 4 \
    --group-size 64 --samples 4 --seq-len 64 --json
expect 0 perplexity alone eval --model text.glowq --text "$GOLDEN/text.txt" --ctx 64

# Evaluation: the same digits on 1, 2 and 4 ranks, in 16 bits and in few. Logits of deviation near 1 make the mean NLL of
# ids that nothing predicts log(1000) + 1/2.
for settings in "" "--bits 4 --group-size 64" "--bits 3 --group-size 64 --rank 8 --layers 3" "--bits 8 --group-size 0 --rank 8"; do
    for n in 1 2 4; do
        expect 0 nll ranks $n eval --synthetic config.json --ctx 128 --json $settings
        python3 - <<'END' || fail "NLL with '$settings' on $n ranks: $(field nll)"
import json, math
e = json.load(open("out"))
assert e["model"] == "config.json" and e["n_tokens"] == 4 * 127 and abs(e["nll"] - math.log(1000) - 0.5) < 0.15
END
        now=$(field nll)
        [ "$n" = 1 ] && first=$now
        same "$now" "$first" "NLL with '$settings' on $n ranks and on 1"
    done
    [ "${previous:-}" != "$first" ] || fail "NLL doesn't depend on '$settings'"
    previous=$first
done
# The same model on the GPU's kernels, where they run.
expect 0 nll alone eval --synthetic config.json --ctx 64 --max-tokens 128 --json
reference=$(field nll)
alone eval --synthetic config.json --ctx 64 --max-tokens 128 --json --device cuda:sim --dtype f32
case $? in
0) python3 -c 'import sys; sys.exit(abs(float(sys.argv[1]) - float(sys.argv[2])) > 1e-4)' "$(field nll)" "$reference" ||
    fail "NLL $(field nll) on cuda:sim, $reference on cpu" ;;
3) echo "not tested here: cuda:sim ($(why))" ;;
*) fail "eval --synthetic on cuda:sim: $(why)" ;;
esac
# Calibration there: traces and energies of every group, all of f32 inputs, to 1e-3.
made sim.glowq --layers 2 --device cuda:sim --dtype f32
case $? in
0) python3 - <<'END' || fail "calibrate --synthetic on cuda:sim differs from the CPU's" ;;
import json
cpu, sim = (json.load(open(d + ".glowq/manifest.json"))["groups"] for d in ("first", "sim"))
assert len(cpu) == len(sim) == 8
for a, b in zip(cpu, sim):
    assert abs(a["error_norm2"] / b["error_norm2"] - 1) < 1e-3, (a, b)
    assert abs(a["trace"] / b["trace"] - 1) < 1e-3 and abs(a["energy"] - b["energy"]) < 2e-3, (a, b)
END
3) echo "not tested here: calibrate on cuda:sim ($(why))" ;;
*) fail "calibrate --synthetic on cuda:sim: $(why)" ;;
esac

# Every shape that comes with the program is read, and what can't fit is refused by the figures before anything is made.
for shape in "$SHAPES"/*.json; do
    expect 2 "--layers 100000" alone eval --synthetic "$shape" --layers 100000
done
for LAUNCH in "" "$GLOWQ_MPIEXEC -n 2"; do
    for command in eval bench; do
        timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" $command --synthetic "$SHAPES/llama-3.1-405b.json" >out 2>err
        same $? 4 "exit code of $command of 405B"
        grep -q "needs .* GiB (weights .*KV cache .*activations .* GiB free: try " err || fail "$command of 405B: $(why)"
    done
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --synthetic "$SHAPES/llama-3.1-405b.json" --samples 100000 \
        --out huge.glowq >out 2>err
    same $? 4 "exit code of calibrate of 405B"
    grep -q "needs .* GiB (hidden states .*second moments .* GiB free: try " err || fail "calibrate of 405B: $(why)"
    [ -e huge.glowq ] && fail "a refused run made its output folder"
done
LAUNCH=""

expect 2 "give one of them" alone eval --model "$TINY" --synthetic config.json
expect 2 "missing --model DIR (or --synthetic CONFIG)" alone bench
expect 2 "--layers goes with --synthetic" alone calibrate --model "$TINY" --text x --out y --layers 1
expect 2 "--bits goes with --synthetic" alone eval --model "$TINY" --text x --bits 4
expect 2 "--text goes with --model" alone eval --synthetic config.json --text "$GOLDEN/text.txt"
expect 2 "describes 5" alone calibrate --synthetic config.json --layers 6 --out y
expect 1 "nowhere.json" alone eval --synthetic nowhere.json
sed 's/"llama"/"gpt2"/; s/Llama/GPT2/' config.json >gpt2.json
expect 3 "gpt2.json" alone eval --synthetic gpt2.json
echo '[1]' >list.json
expect 3 "list.json" alone bench --synthetic list.json
finish
