# SPDX-License-Identifier: Apache-2.0
# eval against golden/protocols.json, which an independent PyTorch loop wrote: perplexity, standard error, counts and hashes of
# every protocol; beside a reference against golden/comparisons.json. With the argument "data": published models.
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

    # beside a reference: the reference loop's figures, on any number of ranks the same digits, adding up to what is printed
    expect 0 top1_agreement alone eval --model "$GOLDEN/families/moe_cut" --reference "$TINY" --text "$GOLDEN/text.txt" --ctx 64 \
        --json
    python3 - "$GOLDEN/comparisons.json" <<'END' || fail "moe_cut against tp_cut isn't as the reference loop has it"
import json, math, sys
want = next(w for w in json.load(open(sys.argv[1])) if w["model"] == "families/moe_cut")
e = json.load(open("out"))
r, n = e["reference"], e["n_tokens"]
assert (n, e["n_windows"]) == (want["tokens"], want["windows"])
for got, key in ((e["nll"], "nll"), (r["nll"], "reference_nll"), (r["nll_difference"], "nll_difference"), (r["kl"], "kl"),
                 (r["nll_difference_stderr"], "nll_difference_stderr"), (r["kl_stderr"], "kl_stderr")):
    assert abs(got - want[key]) < 5e-6, (key, got, want[key])
assert round(r["top1_agreement"] * n) == want["agreements"]
mean = lambda v: math.fsum(m * k for m, k in zip(v, e["window_tokens"])) / n
assert abs(mean(r["window_kl"]) - r["kl"]) < 1e-12 and abs(mean(r["window_nll"]) - r["nll"]) < 1e-12
assert abs(math.exp(r["nll"]) - r["perplexity"]) < 1e-9 * r["perplexity"] and r["model"].endswith("tp_cut")
END
    calibrate_tiny tiny.glowq || fail "calibrate: $(why)"
    told=""
    for n in 1 2 4; do
        expect 0 "KL(reference || model)" ranks $n eval --model tiny.glowq --reference "$TINY" --text "$GOLDEN/text.txt" --ctx 64
        now=$(grep -v "^time" out)
        same "$now" "${told:=$now}" "what eval --reference prints on $n ranks and on one"
    done
    # what a divergence is for: the correction brings the model nearer to what it was made from
    for without in "" --no-correction; do
        expect 0 kl_stderr alone eval --model tiny.glowq --reference "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --json $without
        mv out "kl$without.json"
    done
    python3 - <<'END' || fail "divergence with and without the correction"
import json
kl, plain = (json.load(open(f))["reference"]["kl"] for f in ("kl.json", "kl--no-correction.json"))
assert 0 < kl < plain, (kl, plain)
END
    expect 0 "+0.000000 +- 0.000000" alone eval --model "$TINY" --reference "$TINY" --text "$GOLDEN/text.txt" --ctx 64
    cp -r "$TINY" other && echo >>other/tokenizer.json
    expect 0 "different tokenizers" alone eval --model "$TINY" --reference other --text "$GOLDEN/text.txt" --ctx 64
    expect 1 "nowhere: no such folder; --reference takes" alone eval --model "$TINY" --reference nowhere --text "$GOLDEN/text.txt"
    expect 2 "dense has a vocabulary of 2048 ids" alone eval --model "$TINY" --reference "$DENSE" --text "$GOLDEN/text.txt"
    expect 2 "one of 288" ranks 2 eval --model "$TINY" --reference "$DENSE" --text "$GOLDEN/text.txt"
    expect 2 "--reference goes with --model" alone eval --synthetic "$DENSE/config.json" --reference "$DENSE"
    if [ -e "$GLOWQ_MODULE_DIR/libglowq_cuda_sim.so" ]; then # memory for one of them: said before the first is loaded
        export GLOWQ_SIM_MEMORY=16000000
        expect 0 perplexity alone eval --device cuda:sim --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --max-tokens 63
        expect 4 "model and reference are held together" alone eval --device cuda:sim --model "$TINY" --reference "$TINY" \
            --text "$GOLDEN/text.txt" --ctx 64 --max-tokens 63
        grep -q "loaded in" err && fail "a model was loaded that had no room beside its reference"
        unset GLOWQ_SIM_MEMORY
    else
        echo "not checked, no simulated GPU: memory for a model and its reference"
    fi

    expect 2 "at least" alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --max-tokens 10
    expect 2 "--ctx 100000" alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 100000
    expect 1 "nowhere.txt" alone eval --model "$TINY" --text nowhere.txt
    expect 1 "nowhere" alone eval --model nowhere --text "$GOLDEN/text.txt"
    printf 'a\377b' >binary.txt
    expect 3 "UTF-8" alone eval --model "$TINY" --text binary.txt
fi
finish
