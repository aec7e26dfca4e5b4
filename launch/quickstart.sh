#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds, calibrates the bundled model on MPI ranks, compares it with the original and with plain quantization, generates.
set -eu
cd "$(dirname "$0")/.."
MODEL="${MODEL:-examples/dense}"                       # any Hugging Face folder
TEXT="${TEXT:-examples/texts/calibration.txt}"         # what to calibrate on
HELDOUT="${HELDOUT:-examples/texts/heldout.txt}"       # what to measure on
RANKS="${RANKS:-2}"                                    # MPI ranks
RANK="${RANK:-32}"                                     # of the correction
BITS="${BITS:-4 3}"                                    # widths to show
BUILD="${BUILD:-build}" && export BUILD                # as for build.sh
OUT="${OUT:-$BUILD/quickstart}"                        # where the results go
PROMPT="${PROMPT:-The old harbour}"                    # what to continue

launch/build.sh
. launch/mpi_env.sh
mkdir -p "$OUT"
run() { echo "+ $*" >&2; "$@"; }
glowq() { run mpirun -n "$RANKS" "$BUILD/glowq" "$@"; }
field() { sed -n "s/^ \{${2:-2}\}\"$1\": \([-+0-9.e]*\),*\$/\1/p" "$OUT/last.json"; } # NAME, spaces before it
# One row of the table: bits, title, bytes of the linears, then what eval takes.
row() {
    bits=$1 title=$2 bytes=$3; shift 3
    glowq eval "$@" --reference "$MODEL" --text "$HELDOUT" --ctx 256 --quiet --json >"$OUT/last.json"
    printf '%4s  %-18s %9.4f +- %.4f  %9.5f +- %.5f  %11.3f\n' "$bits" "$title" "$(field perplexity)" \
        "$(field perplexity_stderr)" "$(field kl 4)" "$(field kl_stderr 4)" "$(echo "$bytes" | awk '{ print $1 / 1048576 }')" >>"$OUT/table"
}

printf '%4s  %-18s %-19s  %-20s  %11s\n' bits weights "   perplexity" "  divergence, nats" "linears MiB" >"$OUT/table"
for b in $BITS; do
    glowq calibrate --model "$MODEL" --text "$TEXT" --out "$OUT/w$b.glowq" --bits "$b" --rank "$RANK" --seq-len 256 \
        --samples 128 --overwrite --json >"$OUT/last.json"
    plain=$(field quantized_bytes) corrected=$(($(field quantized_bytes) + $(field factor_bytes))) full=$(field weight_bytes)
    [ "$b" != "${BITS%% *}" ] || row 16 "as stored" "$full" --model "$MODEL"
    row "$b" "rounded" "$plain" --model "$OUT/w$b.glowq" --no-correction
    row "$b" "GlowQ, rank $RANK" "$corrected" --model "$OUT/w$b.glowq"
done
glowq generate --model "$OUT/w${BITS%% *}.glowq" --prompt "$PROMPT" --max-tokens 60 --echo --quiet
echo && cat "$OUT/table" && echo "report: $OUT/w${BITS%% *}.glowq/report.html"
