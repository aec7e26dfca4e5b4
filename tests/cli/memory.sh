# SPDX-License-Identifier: Apache-2.0
# The memory planned for a calibration is within 5% of the most that it then held, once it is known whose S was in f64, and what it
# is refused by is no less: on the bundled models with every solver, and on two layers of real shape (the second has massive channels,
# so that both happen).
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
LIMIT_S=1500
checked() { # what
    python3 - out.glowq/run.json "$1" <<'END' || fail "planned memory of $1"
import json, sys
bad = 0
for r in json.load(open(sys.argv[1]))["ranks"]:
    ratio = r["planned_run_bytes"] / r["peak_bytes"]
    print("%s, rank %d: planned %.1f MB, as it was %.1f MB, held %.1f MB, ratio %.3f, %d groups in f32, %d in f64" %
          (sys.argv[2], r["rank"], r["planned_bytes"] / 1e6, r["planned_run_bytes"] / 1e6, r["peak_bytes"] / 1e6, ratio,
           r["groups"]["f32"], r["groups"]["f64"]))
    bad += not 0.95 <= ratio <= 1.05 or r["planned_bytes"] < r["planned_run_bytes"]
sys.exit(bad)
END
}
EXAMPLES=$GLOWQ_SOURCE_DIR/examples
for model in dense moe; do
    for solver in "krylov" "qr-rsvd" "qr-rsvd --qr householder" "krylov --sharing module" "krylov --exact-energy"; do
        counts=2
        [ "$solver" = krylov ] && counts="1 2"
        for n in $counts; do
            expect 0 energy ranks $n calibrate --model "$EXAMPLES/$model" --text "$EXAMPLES/texts/calibration.txt" \
                --out out.glowq --overwrite --samples 8 --seq-len 512 --solver $solver
            checked "$model, $solver, $n ranks"
        done
    done
done
expect 0 energy alone calibrate --synthetic "$EXAMPLES/shapes/llama-2-7b.json" --layers 2 --samples 4 --seq-len 512 \
    --out out.glowq --overwrite --threads 2
checked "two layers of Llama-2-7B's shape"
python3 -c 'import json; g = json.load(open("out.glowq/run.json"))["ranks"][0]["groups"]; assert g["f32"] > 0 and g["f64"] > 0, g' ||
    fail "the second layer has no massive channel"
rm -rf out.glowq
finish
