# SPDX-License-Identifier: Apache-2.0
# Published models: the perplexities that an independent PyTorch implementation gives, to
# 4 digits, with the same bits on 1, 2 and 4 ranks; the NLL of every token of one sentence to 1e-3; and the way of every
# tokenizer from text to ids and back.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
need_data

while read -r model reference; do
    for n in 1 2 4; do
        expect 0 token_nll ranks $n eval --model "$DATA/models/$model" --text "$DATA/text/tinystories_197k.txt" \
            --protocol windows --ctx 256 --max-tokens 40000 --json --quiet --per-token-nll
        now=$(sed '/"seconds"\|"n_ranks"/d' out | sha256sum)
        [ "$n" = 1 ] && first=$now
        [ "$now" = "$first" ] || fail "$model: other bits on $n ranks than on 1"
    done
    python3 -c 'import sys; a, b = map(float, sys.argv[1:]); sys.exit(abs(a / b - 1) > 5e-5)' "$(field perplexity)" "$reference" ||
        fail "$model: perplexity $(field perplexity), reference $reference"
done <<'END'
stories260K-f32 6.55499
stories260K-bf16 6.55669
stories260K-sharded3-bf16 6.55669
stories260K-untied-f32 6.55499
stories260K-qwen2-f32 6.55499
babyllama361-f32 2.27763
END

for model in stories260K babyllama361; do
    python3 - "$DATA/models/golden.jsonl" $model <<'END' >text.txt || fail "no golden line for $model"
import json, sys
line, = (e for e in map(json.loads, open(sys.argv[1])) if e["model"].startswith(sys.argv[2]))
json.dump(line, open("golden.json", "w"))
sys.stdout.write(line["text"])
END
    expect 0 token_nll alone eval --model "$DATA/models/$model-f32" --text text.txt --protocol windows --ctx 256 --json \
        --per-token-nll
    python3 - <<'END' || fail "$model: NLL of single tokens"
import json, sys
want, got = json.load(open("golden.json"))["token_nll"], json.load(open("out"))["token_nll"]
worst = max(abs(a - b) for a, b in zip(want, got))
print("%d tokens, largest difference %.2g" % (len(got), worst))
sys.exit(len(want) != len(got) or worst > 1e-3)
END
    same "$("$GLOWQ" tokenize --model "$DATA/models/$model-f32" --add-bos <text.txt)" \
        "$(python3 -c 'import json; print(*json.load(open("golden.json"))["ids"])')" "$model: ids"
done

# decode(encode(text)) = text; what Qwen normalizes (NFC) is compared normalized
for tokenizer in "$DATA"/tokenizers/*/; do
    [ "$(basename "$tokenizer")" = vectors ] && continue
    text=$DATA/text/wiki.test.raw
    "$GLOWQ" tokenize --model "$tokenizer" <"$text" >ids && "$GLOWQ" tokenize --model "$tokenizer" --decode <ids >back ||
        fail "$tokenizer: encode or decode"
    python3 - "$text" <<'END' || fail "$tokenizer: WikiText-2 isn't the same after encode and decode"
import sys, unicodedata
a, b = open(sys.argv[1], newline="").read(), open("back", newline="").read()
sys.exit(a != b and unicodedata.normalize("NFC", a) != b)
END
done
finish
