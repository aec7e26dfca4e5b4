# SPDX-License-Identifier: Apache-2.0
# select: what is measured of a choice in a loaded model is what the written folder gives, to the digit; the same folder on any number
# of ranks and after a kill; nothing and everything kept are the model without and with its correction. Dense, and with experts.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
HELD=$GLOWQ_SOURCE_DIR/examples/texts/heldout.txt
MOE=$GLOWQ_SOURCE_DIR/examples/moe
calibrate_dense dense.glowq --bits 3 --samples 16 || fail "calibrate: $(why)"
timeout "$LIMIT_S" "$GLOWQ" calibrate --model "$MOE" --text "$DENSE_TEXT" --out moe.glowq --bits 3 --samples 16 --seq-len 128 \
    --rank 16 >out 2>err || fail "calibrate the mixture: $(why)"

select_from() { # FROM, more options
    from=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" select --model "$from" --text "$HELD" --ctx 64 --max-tokens 512 --json --quiet "$@" \
        >out 2>err
}
nll_of() { # FOLDER, more options
    folder=$1; shift
    alone eval --model "$folder" --text "$HELD" --ctx 64 --max-tokens 512 --json "$@" || fail "eval $folder: $(why)"
    python3 -c 'import json; print(repr(json.load(open("out"))["nll"]))'
}

for kind in dense moe; do
    # every part of the answer, by the definitions
    launch_on 1
    select_from $kind.glowq --out $kind-1.glowq || fail "select $kind: $(why)"
    cp out $kind.json
    python3 - $kind.json $kind-1.glowq/manifest.json $kind.glowq/manifest.json <<'END' || fail "$kind: the choice"
import json, sys
s, made, source = (json.load(open(p)) for p in sys.argv[1:])
groups, curve, chosen = s["groups"], s["curve"], s["chosen"]
total = sum(g["factor_bytes"] for g in groups)
kept = [g for g in groups if g["kept"]]
assert chosen["n_groups"] == len(kept) and chosen["factor_bytes"] == sum(g["factor_bytes"] for g in kept) <= total / 2
assert curve[0]["n_groups"] == 0 and curve[-1]["n_groups"] == len(groups) and curve[-1]["above"] == 0
by_score = {}
for p in curve[1:-1]:
    by_score.setdefault(p["score"], []).append(p)
    assert abs(p["loss"] - curve[-1]["loss"] - p["above"]) < 1e-12
assert set(by_score) == {"sensitivity", "energy", "captured", "order"}
for points in by_score.values():
    assert [p["factor_bytes"] for p in points] == sorted(p["factor_bytes"] for p in points) and len(points) == 3
# of the four choices of half of the bytes the best
assert chosen in curve and chosen["loss"] == min(points[1]["loss"] for points in by_score.values())
# the folder says so too
assert made["selection"]["groups"] == len(kept) and made["selection"]["of_groups"] == len(groups)
assert made["selection"]["fingerprint"] == source["fingerprint"] != made["fingerprint"]
name = lambda g: (g["layer"], g["group"])
want = {name(g) for g in kept}
for g, old in zip(made["groups"], source["groups"]):
    if name(g) in want:
        assert g == old
    else:
        assert g["rank"] == g["factor_bytes"] == g["captured"] == g["energy"] == 0 and g["trace"] == old["trace"]
END
    loss=$(python3 -c 'import json; print(repr(json.load(open("out"))["chosen"]["loss"]))')
    same "$(nll_of $kind-1.glowq)" "$loss" "$kind: loss of the choice and of its folder"
    expect 0 sound alone verify $kind-1.glowq
    expect 0 "" alone generate --model $kind-1.glowq --prompt "The old" --max-tokens 4
    for n in 2 3; do
        launch_on $n
        select_from $kind.glowq --out $kind-$n.glowq || fail "select $kind on $n ranks: $(why)"
        same "$(bytes_of $kind-$n.glowq)" "$(bytes_of $kind-1.glowq)" "$kind: bytes on $n ranks and on 1"
        python3 -c 'import json, sys
a, b = (json.load(open(p)) for p in sys.argv[1:])
sys.exit(any(a[k] != b[k] for k in a if k not in ("seconds", "n_ranks", "out")))' out $kind.json || fail "$kind: answer on $n ranks"
    done
    launch_on 1
    # nothing and everything
    select_from $kind.glowq --keep 0% --score order --points 1 --out $kind-none.glowq || fail "select nothing: $(why)"
    same "$(nll_of $kind-none.glowq)" "$(nll_of $kind.glowq --no-correction)" "$kind: nothing kept and no correction"
    select_from $kind.glowq --keep 100% --score energy --points 1 --out $kind-all.glowq || fail "select everything: $(why)"
    same "$(nll_of $kind-all.glowq)" "$(nll_of $kind.glowq)" "$kind: everything kept and the model itself"
done

# By the divergence from the 16-bit model: the written folder's own, to the digit, on two ranks as on one.
select_from dense.glowq --reference "$DENSE" --score captured --points 2 --out dense-kl.glowq || fail "select by divergence: $(why)"
loss=$(python3 -c 'import json; s = json.load(open("out")); assert s["loss"] == "kl"; print(repr(s["chosen"]["loss"]))')
for n in 1 2; do
    ranks $n eval --model dense-kl.glowq --reference "$DENSE" --text "$HELD" --ctx 64 --max-tokens 512 --json || fail "eval: $(why)"
    same "$(python3 -c 'import json; print(repr(json.load(open("out"))["reference"]["kl"]))')" "$loss" "divergence of the choice and of its folder"
done
expect 2 "vocabulary" select_from dense.glowq --reference "$TINY"

# An unfinished folder is gone on with: the layer that is there isn't written again, the one that isn't is.
cp -r dense-1.glowq cut.glowq
rm cut.glowq/manifest.json cut.glowq/model.h5 cut.glowq/layers/0003.h5
before=$(stat -c %i cut.glowq/layers/0001.h5)
select_from dense.glowq --out cut.glowq || fail "going on: $(why)"
same "$(bytes_of cut.glowq)" "$(bytes_of dense-1.glowq)" "bytes of a folder that was gone on with"
same "$(stat -c %i cut.glowq/layers/0001.h5)" "$before" "a layer that was there"
rm cut.glowq/manifest.json
expect 2 "something else" select_from dense.glowq --keep 10% --score order --points 1 --out cut.glowq
[ -e cut.glowq/manifest.json ] && fail "a refused folder was finished"

# A choice of a choice; the elbow is one of a single score.
select_from dense-1.glowq --keep elbow --points 1 || fail "elbow: $(why)"
grep -q '"score": "energy"' out && fail "elbow: other scores were tried"
# A size.
select_from dense.glowq --keep 100K --score energy --points 2 || fail "a size: $(why)"
python3 -c 'import json
c = json.load(open("out"))["chosen"]
assert 50 << 10 < c["factor_bytes"] <= 100 << 10, c' || fail "--keep 100K"

expect 2 "stands there already" select_from dense.glowq --out dense-1.glowq
expect 2 "a checkpoint's folder" select_from dense.glowq --out "$DENSE"
touch file
expect 1 "file" select_from dense.glowq --out file/out.glowq
mkdir -p busy.glowq && (
    exec 9>busy.glowq/.lock
    flock 9
    expect 2 "another job" select_from dense.glowq --out busy.glowq
    exit $failures
) || fail "a folder that another job writes"
expect 2 "is what is read" select_from dense.glowq --out dense.glowq
expect 2 "--keep" select_from dense.glowq --keep 0
expect 2 "--keep" select_from dense.glowq --keep 101%
expect 2 "--keep" select_from dense.glowq --keep 5x
expect 2 "elbow" select_from dense.glowq --keep elbow --score order
expect 2 "a checkpoint" select_from "$DENSE"
expect 2 "nothing to choose" select_from dense-none.glowq
printf 'short' >short.txt
expect 2 "at least" alone select --model dense.glowq --text short.txt
cp -r dense.glowq damaged.glowq
printf 'x' | dd of=damaged.glowq/layers/0002.h5 bs=1 seek=40000 conv=notrunc 2>/dev/null
expect 3 "0002.h5" select_from damaged.glowq --out never.glowq
[ -e never.glowq/manifest.json ] && fail "a damaged model was selected from"
finish
