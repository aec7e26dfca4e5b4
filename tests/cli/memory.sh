# SPDX-License-Identifier: Apache-2.0
# The memory planned for a calibration is within 15% of the most that it then held: on the bundled models with every solver, and on
# two layers of real shape (the second has channels that make the solver work in f64, the worst that is planned for).
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
LIMIT_S=1500
checked() { # what
    python3 - out.glowq/run.json "$1" <<'END' || fail "planned memory of $1"
import json, sys
bad = 0
for r in json.load(open(sys.argv[1]))["ranks"]:
    ratio = r["planned_bytes"] / r["peak_bytes"]
    print("%s, rank %d: planned %.1f MB, held %.1f MB, ratio %.3f" %
          (sys.argv[2], r["rank"], r["planned_bytes"] / 1e6, r["peak_bytes"] / 1e6, ratio))
    bad += not 0.85 <= ratio <= 1.15
sys.exit(bad)
END
}
EXAMPLES=$GLOWQ_SOURCE_DIR/examples
for model in dense moe; do
    for solver in "krylov" "qr-rsvd" "qr-rsvd --qr householder" "krylov --sharing module"; do
        for n in 1 2; do
            expect 0 energy ranks $n calibrate --model "$EXAMPLES/$model" --text "$EXAMPLES/texts/calibration.txt" \
                --out out.glowq --overwrite --samples 8 --seq-len 512 --solver $solver
            checked "$model, $solver, $n ranks"
        done
    done
done
expect 0 energy alone calibrate --synthetic "$EXAMPLES/shapes/llama-2-7b.json" --layers 2 --samples 4 --seq-len 512 \
    --out out.glowq --overwrite --threads 2
checked "two layers of Llama-2-7B's shape"
rm -rf out.glowq
finish
