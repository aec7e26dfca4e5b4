# SPDX-License-Identifier: Apache-2.0
# --device cpu:check: every subcommand does on it what it does on cpu, to the bit, on one rank and on two.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
layers_of() { (cd "$1" && sha256sum layers/*.h5 head.h5 | sha256sum | cut -d' ' -f1); }
evaluated() { tr -d ' \n' <out | sed 's/"seconds":[^,]*,//; s/"n_ranks":[0-9]*,//'; }
generated() { tr -d ' \n' <out | sed 's/"prefill_s":[^,]*,//; s/"decode_s":[^,]*,//; s/"tokens_per_s":[^,]*,//; s/"n_ranks":[0-9]*//'; }
prompt=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["prompt"])' "$TINY/generate.json")

for settings in "--bits 4" "--bits 3 --solver qr-rsvd --exact-energy" "--bits 2 --solver qr-rsvd --qr householder"; do
    calibrate_tiny cpu.glowq --overwrite --device cpu $settings || fail "$settings on cpu: $(why)"
    want=$(layers_of cpu.glowq)
    for LAUNCH in "" "$GLOWQ_MPIEXEC -n 2"; do
        calibrate_tiny check.glowq --overwrite --device cpu:check $settings || fail "$settings on cpu:check: $(why)"
        same "$(layers_of check.glowq)" "$want" "bytes of $settings on cpu:check ($LAUNCH)"
    done
    LAUNCH=""
done
for model in "$TINY" cpu.glowq; do
    expect 0 token_nll alone eval --model "$model" --text "$GOLDEN/text.txt" --ctx 64 --json --per-token-nll --device cpu
    want=$(evaluated)
    expect 0 ids alone generate --model "$model" --prompt "$prompt" --max-tokens 24 --json --device cpu
    want_text=$(generated)
    for n in 1 2; do
        expect 0 token_nll ranks $n eval --model "$model" --text "$GOLDEN/text.txt" --ctx 64 --json --per-token-nll \
            --device cpu:check
        same "$(evaluated)" "$want" "eval $model on $n ranks"
        expect 0 ids ranks $n generate --model "$model" --prompt "$prompt" --max-tokens 24 --json --device cpu:check
        same "$(generated)" "$want_text" "generate $model on $n ranks"
    done
done
finish
