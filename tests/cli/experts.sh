# SPDX-License-Identifier: Apache-2.0
# calibrate of mixtures of experts: the same bytes for any number of ranks, experts that don't divide among them or are fewer than
# they, whether experts' weights travel to the tokens or tokens to them; every way to weigh, refit and share; an expert that no token chose; routers that answer NaN; what comes out runs.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
MOE=$GOLDEN/families/moe_cut # five experts of odd width and a shared one, random weights, a tokenizer
EXAMPLES=$GLOWQ_SOURCE_DIR/examples

calibrate_moe() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --model "$MOE" --text "$GOLDEN/text.txt" --out "$out_dir" --rank 8 \
        --expert-rank 6 --group-size 32 --samples 12 --seq-len 64 --json "$@" >out 2>err
}
calibrate_shape() { # OUT, FAMILY, more options
    out_dir=$1 family=$2; shift 2
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --synthetic "$GOLDEN/families/$family/config.json" --out "$out_dir" \
        --rank 8 --expert-rank 4 --group-size 16 --samples 12 --seq-len 64 --json "$@" >out 2>err
}

# Same bytes on 1 to 4 ranks and on more ranks than there are experts.
for settings in "--bits 4" "--bits 3 --solver qr-rsvd --expert-weights gates" "--bits 2 --sharing module" \
    "--bits 4 --expert-refit layer --expert-weights none --factor-dtype f16" "--bits 8 --rank 0 --expert-rank -1"; do
    same_on "1 2 3 4 7" r calibrate_moe --overwrite --expert-traffic weights $settings
    expect 0 "sound" alone verify r3.glowq
    with_weights=$same_bytes counts=3
    [ "$settings" = "--bits 4" ] && counts="1 2 3 4 7"
    same_on "$counts" t calibrate_moe --overwrite --expert-traffic tokens $settings
    same "$same_bytes" "$with_weights" "bytes of $settings with tokens that travel, and with weights"
    grep -q '"expert_traffic": "tokens"' t3.glowq/run.json || fail "run.json doesn't say what travelled"
done
# Of other families: experts without a shared one, dense layers between, many experts of which few tokens come to each.
for family in mixtral qwen2moe_norm qwen2moe_layers qwen3moe_layers; do
    same_on "1 2 3 4" f calibrate_shape "$family" --overwrite
    expect 0 "sound" alone verify f2.glowq
    expect 0 "tokens/s" alone bench --model f2.glowq --batch 1 --prompt 8 --generate 2 --repeat 1
    by_default=$same_bytes
    same_on "2 3" s calibrate_shape "$family" --overwrite --expert-traffic tokens
    same "$same_bytes" "$by_default" "bytes of $family with tokens that travel, and by default"
done
# Within a stage of a grid, in each layer of a wave; with more ranks than super-blocks.
for waves in 1 2; do
    launch_on 4
    calibrate_shape grid.glowq qwen3moe_layers --overwrite --expert-traffic tokens --grid 2x2 --waves $waves ||
        fail "a grid in $waves waves: $(why)"
    grep -q "tokens travel to their experts: about" err || fail "what travels isn't told: $(cat err)"
    same "$(bytes_of grid.glowq)" "$by_default" "bytes of a grid in $waves waves, tokens travelling, and of one rank"
done
LAUNCH=""

# Resuming, on another number of ranks and with tokens that travel; the experts' settings belong to what a layer was made with.
calibrate_moe whole.glowq || fail "a whole run: $(why)"
before=$(bytes_of whole.glowq)
rm whole.glowq/manifest.json whole.glowq/model.h5 whole.glowq/layers/0001.h5
for other in "--expert-rank 5" "--expert-weights none" "--expert-refit layer" "--sharing module"; do
    expect 2 "--overwrite" calibrate_moe whole.glowq $other
done
launch_on 3
expect 0 n_resumed calibrate_moe whole.glowq --expert-traffic tokens
LAUNCH=""
same "$(field n_resumed)" 1 "layers resumed"
same "$(bytes_of whole.glowq)" "$before" "bytes after resuming"

# What is told: in JSON, in the manifest, in the report.
python3 - out whole.glowq/manifest.json <<'END' || fail "facts about experts"
import json, sys
r = json.load(open(sys.argv[1]))["experts"]
m = json.load(open(sys.argv[2]))
assert r["gate_up_rank"] == r["down_rank"] == 6 and r["routed"] == 10, r
assert len(m["experts"]) == 2 and m["settings"]["expert_refit"] == "own"
for layer in m["experts"]:
    assert sum(layer["tokens"]) == m["text"]["tokens"] * 2, layer["tokens"]  # each token has two experts
    assert all(abs(w * m["text"]["tokens"] - t) < 1e-9 * t for w, t in zip(layer["weight"], layer["tokens"]))
    assert all(0 < e < 1 for e in layer["gate_up_energy"] + layer["down_energy"])
    assert layer["starved"] == [e for e, t in enumerate(layer["tokens"]) if t < 6]
kinds = [g["group"] for g in m["groups"]]
assert kinds == ["qkv", "o", "gate_up", "down", "expert_down"] * 2, kinds
routed, whole = m["sharing"]["bytes"]
m_rows, d, n = 5 * 2 * 16, 64, 5  # A has m rows, B d columns: bf16, rank 6, two layers
assert routed["b_per_layer"] == 2 * 2 * 6 * (m_rows + d)
assert routed["b_per_pair"] == 2 * 2 * 6 * (m_rows + n * d)
assert routed["b_per_matrix"] == 2 * 2 * 6 * (m_rows + 2 * n * d)
assert whole["b_per_layer"] == 2 * 2 * 6 * (m_rows + 2 * 44 + d)
factors = {g["group"]: g["factor_bytes"] for g in m["groups"]}
assert factors["gate_up"] * 2 == whole["b_per_layer"], factors
END
for word in "<h2>Experts</h2>" "One B for all experts" "Coverage"; do
    grep -q "$word" whole.glowq/report.html || fail "no \"$word\" in the report"
done
calibrate_moe budget.glowq --expert-rank -1 || fail "ranks by budget: $(why)"
grep -q "layers with experts: rank" err || fail "the ranks that were chosen aren't printed: $(cat err)"

# What was made runs, the same on 1, 2 and 4 ranks; without the correction made it is what plain quantization makes.
for n in 1 2 4; do
    expect 0 perplexity ranks $n eval --model whole.glowq --text "$GOLDEN/text.txt" --ctx 64 --json
    [ "$n" = 1 ] && first=$(field perplexity)
    same "$(field perplexity)" "$first" "perplexity on $n ranks and on 1"
done
calibrate_moe plain.glowq --rank 0 --expert-rank 0 || fail "plain quantization: $(why)"
expect 0 perplexity alone eval --model plain.glowq --text "$GOLDEN/text.txt" --ctx 64 --json
plain=$(field perplexity)
expect 0 perplexity alone eval --model whole.glowq --no-correction --text "$GOLDEN/text.txt" --ctx 64 --json
same "$(field perplexity)" "$plain" "perplexity without the correction, and of a model that has none"

# On a trained model at 2 bits the correction wins back more than half of what quantization loses.
nll_of() { # MODEL, more options
    model=$1; shift
    alone eval --model "$model" --text "$EXAMPLES/texts/heldout.txt" --ctx 256 --max-tokens 8000 --protocol windows --json \
        "$@" || fail "eval of $model: $(why)"
    field nll
}
expect 0 energy ranks 2 calibrate --model "$EXAMPLES/moe" --text "$EXAMPLES/texts/calibration.txt" --out trained.glowq \
    --bits 2 --samples 64 --seq-len 256 --rank 64 --expert-rank 32
full=$(nll_of "$EXAMPLES/moe") corrected=$(nll_of trained.glowq) plain=$(nll_of trained.glowq --no-correction)
python3 -c "import sys; f, c, p = map(float, sys.argv[1:]); sys.exit(not (c - f < (p - f) / 2))" "$full" "$corrected" "$plain" ||
    fail "NLL $full in 16 bits, $plain in 2 bits, $corrected corrected"
echo "NLL: 16 bits $full, 2 bits $plain, corrected $corrected"

# A router in which expert 4 can't win: it ties with two experts before it, and a token has two. And one that overflows, one
# that holds NaN, a configuration with more choices than experts.
python3 - "$MOE" <<'END' || fail "variants of $MOE"
import json, shutil, struct, sys
source = sys.argv[1]
data = open(source + "/model.safetensors", "rb").read()
n = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + n])
def variant(name, change):
    shutil.copytree(source, name)
    copy = bytearray(data)
    for key, t in header.items():
        if key.endswith("mlp.gate.weight"):
            begin, end = (8 + n + o for o in t["data_offsets"])
            change(copy, begin, end, (end - begin) // t["shape"][0], t["dtype"])
    open(name + "/model.safetensors", "wb").write(copy)
def tie(b, begin, end, row, dtype):
    for e in (1, 4):
        b[begin + e * row:begin + (e + 1) * row] = b[begin:begin + row]
def fill(pattern):
    def change(b, begin, end, row, dtype):
        b[begin:end] = pattern[dtype] * ((end - begin) // len(pattern[dtype]))
    return change
variant("idle", tie)
variant("overflows", fill({"F32": struct.pack("<f", 3.3e38), "BF16": b"\x7f\x7f"}))
variant("nan", fill({"F32": struct.pack("<f", float("nan")), "BF16": b"\xc0\x7f"}))
shutil.copytree(source, "greedy")
c = json.load(open("greedy/config.json"))
c["num_experts_per_tok"] = 6
json.dump(c, open("greedy/config.json", "w"))
END
golden=$MOE
MOE=idle
for n in 1 2 3; do
    launch_on "$n"
    traffic=weights
    [ "$n" = 3 ] && traffic=tokens
    expect 0 starved calibrate_moe "idle$n.glowq" --expert-traffic $traffic
    same "$(bytes_of "idle$n.glowq")" "$(bytes_of idle1.glowq)" "bytes with an idle expert on $n ranks and on 1"
done
LAUNCH=""
grep -q "1 expert saw fewer than 6 tokens.*4 (0)" err || fail "the idle expert isn't named: $(cat err)"
python3 - idle1.glowq/manifest.json <<'END' || fail "facts about an idle expert"
import json, sys
text = open(sys.argv[1]).read()
m = json.loads(text)
assert "NaN" not in text and "Infinity" not in text
for layer in m["experts"]:
    assert layer["tokens"][4] == 0 and layer["starved"] == [4] and layer["weight"][4] == 0
    assert 0 < layer["gate_up_energy"][4] < 1 and 0 < layer["down_energy"][4] < 1  # corrected all the same
END
expect 0 perplexity alone eval --model idle1.glowq --text "$GOLDEN/text.txt" --ctx 64
for LAUNCH in "" "$GLOWQ_MPIEXEC -n 2"; do
    MOE=overflows
    for traffic in weights tokens; do
        expect 1 "layer 0, router" calibrate_moe bad.glowq --expert-traffic $traffic
        grep -q "calibration sequence 0, token 0" err || fail "the token isn't named: $(cat err)"
    done
    MOE=nan
    expect 3 "mlp.gate.weight" calibrate_moe bad.glowq
    MOE=greedy
    expect 3 "num_experts_per_tok" calibrate_moe bad.glowq
    [ -e bad.glowq/manifest.json ] && fail "a refused run wrote a manifest"
    [ "$(find bad.glowq -path '*layers*' -name '*.h5' 2>/dev/null | wc -l)" = 0 ] || fail "a refused run left a layer"
done
LAUNCH=""
MOE=$golden

# Wrong values of the options.
expect 2 "expert-weights" calibrate_moe bad.glowq --expert-weights loud
expect 2 "expert-rank" calibrate_moe bad.glowq --expert-rank -2
expect 2 "expert-traffic" calibrate_moe bad.glowq --expert-traffic both

# Checked memory, and the GPU's kernels on the CPU where there are some.
calibrate_moe checked.glowq --samples 4 --device cpu:check || fail "on cpu:check: $(why)"
expect 0 "sound" alone verify checked.glowq
launch_on 2
calibrate_moe checked2.glowq --samples 4 --device cpu:check --expert-traffic tokens || fail "on two of cpu:check: $(why)"
same "$(bytes_of checked2.glowq)" "$(bytes_of checked.glowq)" "bytes on two of cpu:check, tokens travelling, and on one"
LAUNCH=""
if calibrate_moe sim.glowq --samples 2 --device cuda:sim --dtype f32; then
    calibrate_moe cpu.glowq --samples 2 || fail "the same on the CPU: $(why)"
    launch_on 2
    calibrate_moe sim2.glowq --samples 2 --device cuda:sim --dtype f32 --expert-traffic tokens || fail "on two of cuda:sim: $(why)"
    LAUNCH=""
    python3 - cpu.glowq/manifest.json sim.glowq/manifest.json sim2.glowq/manifest.json <<'END' ||
import json, sys
b, *others = (json.load(open(p))["experts"] for p in sys.argv[1:])
for a in others:
    for x, y in zip(a, b):
        assert x["tokens"] == y["tokens"]
        for key in ("gate_up_energy", "down_energy"):
            assert all(abs(p - q) < 1e-4 for p, q in zip(x[key], y[key])), (key, x[key], y[key])
END
        fail "experts on cuda:sim and on the CPU differ"
else
    grep -q "libglowq_cuda_sim" err || fail "on cuda:sim: $(why)"
    echo "not run on cuda:sim: $(why)"
fi
finish
