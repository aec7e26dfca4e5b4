# SPDX-License-Identifier: Apache-2.0
# Grids and waves: a calibration's bytes, its experts' and its statistics' too, are the same for every grid of ranks and any number of
# waves, when it is stopped or killed and goes on under another one, and on devices whose memory isn't the host's. What fails in one
# stage ends all of them with one message. What is refused.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
need pgrep
EXAMPLES=$GLOWQ_SOURCE_DIR/examples
cat >config.json <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 192,
 "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu"}
END
# More super-blocks (13) than the longest row of stages has room for on their way, the last one shorter.
SMALL="--synthetic config.json --rank 8 --group-size 64 --samples 100 --seq-len 256"
TEXT="--text $DENSE_TEXT --rank 16 --samples 72 --seq-len 128"
MOE="--model $EXAMPLES/moe --text $DENSE_TEXT --rank 16 --samples 72 --seq-len 64"

# on GRID COMMAND...: on as many ranks as the grid has.
on() {
    grid=$1; shift
    launch_on $((${grid%x*} * ${grid#*x}))
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" "$@" --grid "$grid" </dev/null >out 2>err
}
# made OUT GRID options...: has the bytes of $want.
made() {
    made_out=$1 made_grid=$2; shift 2
    rm -rf "$made_out"
    on "$made_grid" calibrate --out "$made_out" "$@" || fail "$made_grid $*: $(why)"
    same "$(bytes_of "$made_out")" "$want" "bytes of $made_grid $*"
}
events() { # OUT: every layer is told of once, in order
    python3 - "$1" <<'END' || fail "events of $1"
import json, sys
events = [json.loads(line) for line in open(sys.argv[1] + "/events.jsonl")]
run = json.load(open(sys.argv[1] + "/run.json"))
layers = [e["layer"] for e in events if e["event"] == "layer"]
assert layers == list(range(events[0]["layers"])) == [l["layer"] for l in run["layers"]], layers
assert all(e["seconds"] > 0 for e in events if e["event"] == "layer")
assert events[0]["stages"] == run["grid"]["stages"] and events[0]["waves"] == run["grid"]["waves"]
END
}

# ---- bytes
on 1x1 calibrate --out whole.glowq $SMALL || fail "calibrate: $(why)"
want=$(bytes_of whole.glowq)
for grid in 2x1 1x2 1x3 3x1 2x2 1x4 4x1; do made out.glowq $grid $SMALL; done
events out.glowq
while read -r grid waves; do made out.glowq "$grid" $SMALL --waves "$waves"; done <<'END'
1x1 1
1x1 2
1x2 1
2x1 1
2x1 5
2x2 2
3x1 1
4x1 3
END
events out.glowq
same "$(ls out.glowq | tr '\n' ' ')" "$(ls whole.glowq | tr '\n' ' ')" "what is in the folders"

# Experts, and statistics: solving is shared by stages too.
rm -rf whole.glowq
on 1x1 calibrate --out whole.glowq $MOE --keep-stats || fail "calibrate: $(why)"
want=$(bytes_of whole.glowq)
stats=$(cd whole.glowq/stats && sha256sum *.h5)
made out.glowq 2x2 $MOE --keep-stats --waves 1
same "$(cd out.glowq/stats && sha256sum *.h5)" "$stats" "statistics of 2x2"
made out.glowq 3x1 $MOE
made out.glowq 2x2 $MOE --expert-traffic tokens # to the experts of their stage
on 1x1 solve --stats whole.glowq --model "$EXAMPLES/moe" --out solved.glowq --bits 3 --rank 8 || fail "solve: $(why)"
want=$(bytes_of solved.glowq)
for grid in 2x1 2x2; do
    rm -rf again.glowq
    on $grid solve --stats whole.glowq --model "$EXAMPLES/moe" --out again.glowq --bits 3 --rank 8 || fail "solve on $grid: $(why)"
    same "$(bytes_of again.glowq)" "$want" "bytes of solve on $grid"
done

# ---- stopped and killed, in the middle of a row of waves, and resumed under other grids
rm -rf whole.glowq
on 1x1 calibrate --out whole.glowq --model "$DENSE" $TEXT || fail "calibrate: $(why)"
want=$(bytes_of whole.glowq)
# interrupt SIGNAL WHO GRID options...: the signal goes to the WHO-th rank's process once another layer is there.
interrupt() {
    signal=$1 who=$2 on_grid=$3 before=$(n_layers cut.glowq); shift 3
    on "$on_grid" calibrate --out cut.glowq --model "$DENSE" $TEXT "$@" &
    job=$!
    wait_for_layers cut.glowq $((before + 1))
    kill -s "$signal" "$(processes_of cut.glowq | sed -n "${who}p")" || fail "nobody to send $signal to: $(why)"
    wait "$job"
    code=$?
}
first_layer() { sed -n 's/^  "first_layer": \([0-9]*\),$/\1/p' cut.glowq/run.json; }
# resume FIRST GRID options...: it runs the model from layer FIRST on, to the same bytes.
resume() {
    first=$1 grid=$2; shift 2
    on "$grid" calibrate --out cut.glowq --model "$DENSE" $TEXT "$@" || fail "resuming on $grid: $(why)"
    same "$(first_layer)" "$first" "first layer run on $grid"
    same "$(bytes_of cut.glowq)" "$want" "bytes when $grid resumes"
    same "$(find cut.glowq -name '.*.tmp' -o -name hidden)" "" "what is left when $grid resumes"
    rm -rf cut.glowq
}
interrupt USR1 1 2x1
same "$code" 75 "exit code after USR1"
published=$(n_layers cut.glowq)
case $published in 2 | 4) ;; *) fail "$published layers after USR1, in waves of two" ;; esac
same "$("$GLOWQ" status cut.glowq | grep -c "stopped (SIGUSR1)")" 1 "what status says"
resume "$published" 1x3 --waves 2
interrupt KILL 2 2x1 --hidden-every 1 --watchdog 5 # in the second stage
[ "$code" != 0 ] && [ "$code" != 75 ] || fail "exit code $code after KILL"
rm -rf cut.glowq/hidden
resume 0 4x1
cp -r whole.glowq cut.glowq && rm cut.glowq/manifest.json cut.glowq/layers/0001.h5 cut.glowq/layers/0004.h5 # stages finish out of order
resume 0 2x2 --waves 1

# ---- what fails in the second stage ends both
patch() { # OUT TENSOR VALUE [MODEL]: the dense model, or another, with row 5 of a tensor all VALUE
    cp -r "${4:-$DENSE}" "$1" && python3 - "$@" <<'END'
import json, struct, sys
out, tensor, value = sys.argv[1:4]
with open(out + "/model.safetensors", "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    t = json.loads(f.read(n))[tensor]
    f.seek(8 + n + t["data_offsets"][0] + 5 * t["shape"][1] * 2)
    f.write(struct.pack("<f", float(value))[2:] * t["shape"][1]) # bf16: the upper half
END
}
patch reading model.layers.3.self_attn.o_proj.weight nan
patch running model.layers.3.self_attn.o_proj.weight 3e38
patch quantizing model.layers.5.mlp.down_proj.weight 1e30
patch experts-reading model.layers.3.self_attn.o_proj.weight nan "$EXAMPLES/moe"
patch experts-running model.layers.3.self_attn.o_proj.weight 3e38 "$EXAMPLES/moe"
while read -r model grid code published told word; do # told: one error of each rank that finds it
    roads=""
    case $model in experts*) roads="--expert-traffic tokens" ;; esac
    rm -rf bad.glowq
    on "$grid" calibrate --model "$model" $TEXT --out bad.glowq $roads
    same "$?" "$code" "exit code of $model on $grid"
    grep -a "glowq: error" err | grep -qF -e "$word" || fail "$model on $grid: no \"$word\": $(why)"
    same "$(grep -ac "glowq: error" err)" "$told" "errors of $model on $grid"
    same "$(n_layers bad.glowq)" "$published" "layers of $model on $grid"
    same "$(find bad.glowq -name '.*.tmp' -o -name manifest.json)" "" "what $model left on $grid"
    grep -q '"event":"failed"' bad.glowq/events.jsonl || fail "$model on $grid: events.jsonl tells of no failure"
done <<'END'
reading 2x1 3 2 1 reading/model.safetensors: tensor model.layers.3.self_attn.o_proj.weight: nan at row 5
running 2x1 1 2 1 layer 3, group gate_up: the input holds NaN or infinity at calibration sequence 0, token 0
running 3x1 1 3 1 layer 3, group gate_up: the input holds NaN or infinity at calibration sequence 0, token 0
quantizing 2x1 1 5 1 model.layers.5.mlp.down_proj.weight, row 5: the range of a quantization group has no scale
quantizing 2x2 1 5 1 model.layers.5.mlp.down_proj.weight, row 5: the range of a quantization group has no scale
experts-reading 2x2 3 3 1 experts-reading/model.safetensors: tensor model.layers.3.self_attn.o_proj.weight: nan at row 5
experts-running 2x2 1 3 2 layer 3, group gate_up: the input holds NaN or infinity at calibration sequence 0, token 0
END
# One that hangs is found by the watchdog, which knows nothing of stages.
rm -rf cut.glowq
interrupt STOP 2 2x1 --watchdog 2
same "$code" 6 "exit code when a rank of the second stage stops"

# ---- memory that isn't the host's
for device in cpu:check cuda:sim; do
    tiny="--device $device --model $TINY --text $GOLDEN/text.txt --rank 8 --group-size 64 --samples 12 --seq-len 64"
    rm -rf whole.glowq
    on 1x1 calibrate $tiny --out whole.glowq
    case $? in
    0) ;;
    3) [ $device = cuda:sim ] && echo "no cuda:sim: $(why)" && continue ;;
    *) fail "calibrate on $device: $(why)" ;;
    esac
    want=$(bytes_of whole.glowq)
    made out.glowq 2x1 $tiny
done

# ---- usage
refused() { # WORD OPTION..., on 4 ranks
    word=$1; shift
    expect 2 "$word" ranks 4 calibrate $SMALL --out never.glowq --quiet "$@"
    [ ! -e never.glowq ] || fail "$*: left something behind"
}
refused "is for 6 ranks, there are 4: give 1x4, 2x2, 4x1" --grid 2x3
refused "give stages x ranks of each, like 2x4" --grid 2by2
refused "give stages x ranks of each, like 2x4" --grid 0x4
refused "the model has 5 layers: give 1 to 5" --waves 6
expect 2 "there is 1: give 1x1" alone calibrate $SMALL --out never.glowq --grid 2x1
finish
