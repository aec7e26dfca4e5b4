# SPDX-License-Identifier: Apache-2.0
# device.sh DEVICE: calibrate, eval and generate on a device against the CPU. By the rule: perplexity within 1e-4 of the CPU's
# in f32, 1e-2 in bf16; the factors by the energy they capture and the perplexity of the corrected model; several ranks share the
# one device.
LIMIT_S=${LIMIT_S:-600}
. "$(dirname "$0")/lib.sh"
DEVICE=${1:?usage: device.sh DEVICE}
MODEL=$GLOWQ_SOURCE_DIR/examples/dense
TEXT=$GLOWQ_SOURCE_DIR/examples/texts/heldout.txt
CALIBRATION=$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt
case $DEVICE in # the simulator takes some 50 ms a token
*sim*) TOKENS=256 SAMPLES=4 SEQ_LEN=64 NEW=6 ;;
*) TOKENS=16384 SAMPLES=32 SEQ_LEN=256 NEW=48 ;;
esac

alone eval --device "$DEVICE" --model "$TINY" --text "$GOLDEN/text.txt" --ctx 64 --max-tokens 128 --json
case $? in
0) ;;
3) skip "$(why)" ;;
*) fail "eval on $DEVICE: $(why)"; finish ;;
esac

# close_to A B RELATIVE WHAT
close_to() {
    awk -v a="$1" -v b="$2" -v r="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 0 && d <= r * b) }' ||
        fail "$4: $1 against $2, more than $3 apart"
}
# perplexity OF-DEVICE DTYPE RANKS MODEL...: into $ppl
perplexity() {
    device=$1 dtype=$2 n=$3; shift 3
    ranks "$n" eval --device "$device" --dtype "$dtype" --text "$TEXT" --ctx 256 --max-tokens "$TOKENS" --json "$@" ||
        fail "eval on $device $dtype, $n ranks: $(why)"
    ppl=$(field perplexity)
}
perplexity cpu auto 1 --model "$MODEL"
cpu=$ppl
for run in "f32 1 1e-4" "bf16 1 1e-2" "bf16 2 1e-2" "f32 4 1e-4"; do
    set -- $run
    perplexity "$DEVICE" "$1" "$2" --model "$MODEL"
    close_to "$ppl" "$cpu" "$3" "perplexity on $DEVICE, $1, $2 ranks"
done

# Calibrated on the device by both solvers, judged on the CPU.
calibrate_on() { # OUT DEVICE RANKS, more
    out=$1 device=$2 n=$3; shift 3
    ranks "$n" calibrate --device "$device" --model "$MODEL" --text "$CALIBRATION" --out "$out" --bits 3 --rank 16 \
        --samples $SAMPLES --seq-len $SEQ_LEN --json "$@" || fail "calibrate on $device, $n ranks: $(why)"
}
calibrate_on cpu.glowq cpu 2
energy=$(field energy)
perplexity cpu auto 1 --model cpu.glowq
corrected=$ppl
calibrate_on one.glowq "$DEVICE" 1
close_to "$(field energy)" "$energy" 2e-2 "energy captured on $DEVICE"
calibrate_on two.glowq "$DEVICE" 2
close_to "$(field energy)" "$energy" 2e-2 "energy captured on $DEVICE, 2 ranks"
calibrate_on qr.glowq "$DEVICE" 1 --solver qr-rsvd --qr householder
close_to "$(field energy)" "$energy" 5e-2 "energy captured by qr-rsvd on $DEVICE" # its stop rule is its own
for m in one two qr; do
    perplexity cpu auto 1 --model $m.glowq
    close_to "$ppl" "$corrected" 1e-2 "perplexity of the model calibrated on $DEVICE ($m)"
done
perplexity "$DEVICE" bf16 1 --model cpu.glowq
close_to "$ppl" "$corrected" 1e-2 "perplexity of a low-bit model on $DEVICE"

# Greedy text: the same ids as on the CPU in f32, one token a step, also from a low-bit model.
ids_of() { tr -d ' \n' <out | sed 's/.*"ids":\[\([0-9,]*\)\].*/\1/'; }
for model in "$MODEL" cpu.glowq; do
    expect 0 ids alone generate --model "$model" --prompt "The old harbour" --max-tokens $NEW --json
    want=$(ids_of)
    expect 0 ids alone generate --device "$DEVICE" --dtype f32 --model "$model" --prompt "The old harbour" \
        --max-tokens $NEW --json
    same "$(ids_of)" "$want" "greedy ids of $model on $DEVICE"
done

# Bad input: an index that isn't there.
if [ "$DEVICE" = cuda ]; then
    expect 2 "GPU" alone eval --device cuda:99 --model "$TINY" --text "$GOLDEN/text.txt"
    expect 2 "GPU" ranks 2 eval --device cuda:99 --model "$TINY" --text "$GOLDEN/text.txt"
fi
finish
