# SPDX-License-Identifier: Apache-2.0
# Tensor parallel: every digit of the evaluation and every generated id are the same on 1, 2, 3, 4 and 8 ranks; for weights as
# stored and for packed ones, on a model whose row-parallel splits cut quantization groups.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
calibrate_tiny packed.glowq || fail "calibrate: $(why)"
evaluated() { tr -d ' \n' <out | sed 's/"seconds":[^,]*,//; s/"n_ranks":[0-9]*,//'; }
generated() { tr -d ' \n' <out | sed 's/"prefill_s":[^,]*,//; s/"decode_s":[^,]*,//; s/"tokens_per_s":[^,]*,//; s/"n_ranks":[0-9]*//'; }
prompt=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["prompt"])' "$TINY/generate.json")

for case in "$TINY" packed.glowq "packed.glowq --no-correction"; do
    for n in 1 2 3 4 8; do
        expect 0 token_nll ranks $n eval --model $case --text "$GOLDEN/text.txt" --ctx 64 --json --per-token-nll --quiet
        now=$(evaluated)
        [ "$n" = 1 ] && first=$now
        [ "$now" = "$first" ] || fail "eval $case differs on $n ranks"
        expect 0 ids ranks $n generate --model $case --prompt "$prompt" --max-tokens 48 --json --quiet
        now=$(generated)
        [ "$n" = 1 ] && first_text=$now
        [ "$now" = "$first_text" ] || fail "generate $case differs on $n ranks"
        if [ "$case" = "$TINY" ]; then # transformers' own greedy continuation
            python3 - "$TINY/generate.json" <<'END' || fail "greedy ids differ from the reference on $n ranks"
import json, sys
want, got = json.load(open(sys.argv[1])), json.load(open("out"))
sys.exit(got["prompt_ids"] != want["prompt_ids"] or got["ids"] != want["new_ids"])
END
        fi
    done
done
# Draws are the same everywhere too, and differ by seed.
for n in 1 3; do
    expect 0 ids ranks $n generate --model "$TINY" --prompt "$prompt" --max-tokens 40 -T 1 --top-k 50 --top-p 0.95 --seed 5 --json
    now=$(generated)
    [ "$n" = 1 ] && first=$now
    same "$now" "$first" "drawn text on $n ranks"
done
expect 0 ids alone generate --model "$TINY" --prompt "$prompt" --max-tokens 40 -T 1 --top-k 50 --top-p 0.95 --seed 6 --json
[ "$(generated)" = "$first" ] && fail "another seed draws the same text"
# stdout is the text and nothing else
alone generate --model "$TINY" --prompt "$prompt" --max-tokens 8 --json --quiet && cp out json
alone generate --model "$TINY" --prompt "$prompt" --max-tokens 8 --echo && cp out text
python3 -c 'import json,sys; sys.exit(open("text", "rb").read() != (sys.argv[1] + json.load(open("json"))["text"] + "\n").encode())' \
    "$prompt" || fail "generate --echo prints something else than prompt and text"
expect 2 "rank" ranks 9 eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64
finish
