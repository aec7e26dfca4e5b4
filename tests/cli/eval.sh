# SPDX-License-Identifier: Apache-2.0
# eval against golden/protocols.json, which an independent PyTorch loop wrote: perplexity, standard error, counts and hashes of
# every protocol. With the argument "data": published models.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
where=${1:-golden}
[ "$where" = golden ] || need_data
LIMIT_S=600
python3 - "$where" "$GOLDEN" "$DATA" "$GOLDEN/protocols.json" >cases <<'END'
import json, sys
where, golden, data, path = sys.argv[1:]
for i, e in enumerate(json.load(open(path))):
    if e["where"] == where:
        root = golden if where == "golden" else data
        print(i, root + "/" + e["model"], root + "/" + e["text"], e["protocol"], e["ctx"], e["max_tokens"] or 0)
END
[ -s cases ] || fail "no cases"
while read -r i model text protocol ctx max; do
    expect 0 schema_version alone eval --model "$model" --text "$text" --protocol "$protocol" --ctx "$ctx" --max-tokens "$max" \
        --json --quiet
    mv out "$i.json"
    python3 - "$GOLDEN/protocols.json" "$i" <<'END' || fail "$model $protocol ctx $ctx"
import json, sys
want = json.load(open(sys.argv[1]))[int(sys.argv[2])]
got = json.load(open(sys.argv[2] + ".json"))
bad = []
# 5 digits of the perplexity; the standard error is of the mean NLL, as the reference gives it
for name, key, tolerance in (("perplexity", "perplexity", 1e-5), ("nll", "nll", 1e-5), ("nll_stderr", "stderr", 1e-3)):
    if abs(got[name] - want[key]) > tolerance * abs(want[key]):
        bad.append("%s %.9g, reference %.9g" % (name, got[name], want[key]))
for name, key in (("n_tokens", "tokens"), ("n_windows", "windows"), ("text_sha256", "text_sha256"),
                  ("ids_sha256", "ids_sha256_i32le")):
    if got[name] != want[key]:
        bad.append("%s %s, reference %s" % (name, got[name], want[key]))
if bad:
    print("; ".join(bad))
sys.exit(bool(bad))
END
done <cases

if [ "$where" = golden ]; then
    # the NLL of every token adds up to what is printed
    expect 0 token_nll alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --json --per-token-nll
    python3 - <<'END' || fail "token_nll doesn't add up"
import json, math
e = json.load(open("out"))
n, w = e["token_nll"], e["window_tokens"]
assert len(n) == e["n_tokens"] == sum(w) and len(w) == e["n_windows"]
assert abs(math.fsum(n) / len(n) - e["nll"]) < 1e-12 and abs(math.exp(e["nll"]) - e["perplexity"]) < 1e-9 * e["perplexity"]
at = 0
for k, mean in zip(w, e["window_nll"]):
    assert abs(math.fsum(n[at:at + k]) / k - mean) < 1e-12
    at += k
END
    expect 2 "at least" alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --max-tokens 10
    expect 2 "--ctx 100000" alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 100000
    expect 1 "nowhere.txt" alone eval --model "$TINY" --text nowhere.txt
    expect 1 "nowhere" alone eval --model nowhere --text "$GOLDEN/text.txt"
    printf 'a\377b' >binary.txt
    expect 3 "UTF-8" alone eval --model "$TINY" --text binary.txt
fi
finish
