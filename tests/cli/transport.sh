# SPDX-License-Identifier: Apache-2.0
# transport.sh DOUBLE [sim]: devices and what carries matrices between them. NCCL is played by DOUBLE (tests/nccl_double.c), which
# moves host memory; with sim, ranks also compute on the simulated GPU.
DOUBLE=${1:?usage: transport.sh DOUBLE} SIM=${2:-}
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
TEXT="--model $TINY --text $GOLDEN/text.txt"
perplexity() { # RANKS, more options: of a short evaluation
    n=$1; shift
    expect 0 perplexity ranks "$n" eval $TEXT --ctx 64 --max-tokens 128 --json "$@" >&2
    field perplexity | tr -d ' '
}
close() { # GOT WANT BOUND WHAT
    python3 -c 'import sys; g, w, b = map(float, sys.argv[1:4]); sys.exit(not abs(g - w) <= b * w)' "$1" "$2" "$3" ||
        fail "$4: $1 instead of $2"
}
# Ranks that were told different things, in one run: A's arguments, "--", B's.
pair() {
    first=
    while [ "$1" != -- ]; do first="$first $1"; shift; done
    shift
    timeout -k 5 "$LIMIT_S" "$GLOWQ_MPIEXEC" -n 1 "$GLOWQ" $first : -n 1 "$GLOWQ" "$@" >out 2>err
}

# Calibration's sums are exact and the rest is copied: the same bytes, whoever carries them.
LAUNCH="$GLOWQ_MPIEXEC -n 3" calibrate_tiny plain.glowq || fail "calibrate: $(why)"
GLOWQ_NCCL=$DOUBLE LAUNCH="$GLOWQ_MPIEXEC -n 3" calibrate_tiny nccl.glowq || fail "calibrate by NCCL: $(why)"
grep -q "matrices travel by nccl" err || fail "NCCL isn't used: $(why)"
same "$(bytes_of nccl.glowq)" "$(bytes_of plain.glowq)" "bytes calibrated by NCCL and by MPI"

# Evaluation adds in another order: as close as f32 sums are.
cpu=$(perplexity 1)
for n in 1 2 3; do
    close "$(GLOWQ_NCCL=$DOUBLE perplexity $n)" "$cpu" 1e-5 "perplexity by NCCL on $n ranks"
done

# A peer that NCCL loses, in the middle or at the start, ends all ranks, and is named.
export GLOWQ_NCCL_TIMEOUT=5
lost() { GLOWQ_NCCL=$DOUBLE NCCL_DOUBLE=$1 ranks 3 eval $TEXT --ctx 64; }
expect 6 "ncclAllReduce: a peer went away (socket closed" lost error=1:4
expect 6 "ncclCommInitRankConfig: unhandled system error (no socket" lost init=2
expect 6 "Duplicate GPU" lost duplicate
GLOWQ_NCCL=$DOUBLE NCCL_DOUBLE=version=21803 ranks 2 eval $TEXT --ctx 64 || fail "an old NCCL ends the evaluation: $(why)"

# Devices: explained once, by rank 0, and every rank leaves with the code.
expect 2 "--dtype bf16: cpu computes in f32" alone eval $TEXT --device cpu --dtype bf16
expect 2 "--dtype bf16" ranks 3 eval $TEXT --device cpu --dtype bf16
same "$(grep -c "computes in f32" err)" 1 "times that a refusal is printed on 3 ranks"
expect 2 "rank 0 computes on cpu in f32, rank 1 on cpu:ref in f32" \
    pair eval $TEXT --device cpu -- eval $TEXT --device cpu:ref
alone eval $TEXT --ctx 64 || fail "--device auto: $(why)"
grep -q "^device auto: c" err || fail "auto doesn't say what it took: $(why)"
if grep -q "^device auto: cpu" err; then # no GPU here
    expect 3 "cuda" ranks 2 eval $TEXT --device cuda
    same "$(grep -c "error: " err)" 1 "times that 2 ranks say there is no GPU"
    expect 3 "rank 1 (1 of 2 ranks): " pair eval $TEXT --device cpu -- eval $TEXT --device cuda
fi

# On simulated GPUs: staged where ranks share one, by NCCL where each has its own. f32 differs from the CPU's by rounding alone.
if [ -n "$SIM" ]; then
    for n in 1 2 3; do
        close "$(perplexity $n --device cuda:sim --dtype f32)" "$cpu" 1e-5 "perplexity on $n simulated ranks"
    done
    grep -q "mpi, staged" err || fail "3 ranks on cuda:sim don't say what carries matrices: $(why)"
    export GLOWQ_NCCL=$DOUBLE
    close "$(perplexity 2 --device cuda:sim --dtype f32)" "$cpu" 1e-5 "perplexity on a shared GPU"
    grep -q "mpi, staged.*ranks 0 and 1 share GPU 0000:00:00.0" err || fail "a shared GPU isn't named: $(why)"
    export GLOWQ_SIM_GPUS=2
    close "$(perplexity 2 --device cuda:sim --dtype f32)" "$cpu" 1e-5 "perplexity on two GPUs"
    grep -q "rank 1 .*GPU 1: simulated GPU, 0000:01:00.0" err || fail "rank 1 isn't on GPU 1: $(why)"
    grep -q "matrices travel by nccl" err || fail "two GPUs don't use NCCL: $(why)"
fi
finish
