#!/bin/sh
# gpu-suite.sh OUT [STAGE...]: runs what needs a GPU, on a machine without CMake too (in a bundle: run.sh tests/gpu-suite.sh OUT).
#   tests      the cases that CTest labels gpu, each a process of its own with a limit (a CUDA error sticks to its process)
#   sanitize   the op tests under compute-sanitizer: memcheck, racecheck
#   bench      kernels, solver against the published procedure, decode and prefill of an 8B model
#   calibrate  a whole synthetic 8B model, 128 x 2048 tokens, by both solvers
#   experts    a whole synthetic Qwen3-30B-A3B: calibrated on 128 x 2048 tokens, decode and prefill
# A stage starts nothing after BUDGET seconds; what it didn't reach it names. OUT gets results.jsonl (a line a run, written at
# once), summary.md, results.csv, logs.txt and what the benches leave: at most 8 files.
# DEVICE=cuda:sim rehearses all of it on the kernels compiled for the host.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUT [STAGE...]" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 1
shift
STAGES=${*:-tests sanitize bench calibrate experts}
DEVICE="${DEVICE:-cuda}"                       # cuda, or cuda:sim
BUDGET="${BUDGET:-520}"                        # seconds a stage may go on starting runs
ONLY="${ONLY:-.}"                              # of the tests: those whose name matches, e.g. what an earlier call didn't reach
SOURCE="${GLOWQ_SOURCE_DIR:-$(cd "$(dirname "$0")/.." && pwd)}"
GLOWQ="${GLOWQ_BINARY:-$SOURCE/build/glowq}"
BIN=$(dirname "$GLOWQ")                        # a bundle's programs stand together, a build's tests one folder below
LIST=$SOURCE/tests/gpu.list
if [ -d "$BIN/tests" ]; then LIST=$BIN/tests/gpu.list BIN=$BIN/tests; fi
MPIEXEC="${GLOWQ_MPIEXEC:-mpirun}"
SHAPES=$SOURCE/examples/shapes
export GLOWQ_SOURCE_DIR="$SOURCE" GLOWQ_BINARY="$GLOWQ" GLOWQ_MPIEXEC="$MPIEXEC" OPENBLAS_NUM_THREADS=1
[ ! -r "$SOURCE/launch/mpi_env.sh" ] || . "$SOURCE/launch/mpi_env.sh" # a bundle has done so
[ -r "$LIST" ] || { echo "gpu-suite.sh: $LIST isn't there" >&2; exit 1; }

work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
results=$OUT/results.jsonl logs=$OUT/logs.txt
: >"$results"
: >"$logs"
: >"$OUT/bench.txt"
failed=0 tab=$(printf '\t')

on_device() { # names of the device in arguments
    [ "$DEVICE" = cuda ] && echo "$*" || echo " $*" | sed "s/ cuda\>/ $DEVICE/g; s/^ //"
}
# json STRING: escaped
json() { printf '%s' "$1" | tr '\n\t\r' '   ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g'; }

# run_one STAGE NAME LIMIT COMMAND...: a line in results.jsonl, the whole output in logs.txt.
run_one() {
    stage=$1 name=$2 limit=$3; shift 3
    begin=$(date +%s)
    if [ $((begin - stage_begin)) -gt "$BUDGET" ]; then
        code=-1 result="not run" seconds=0 why="the stage's $BUDGET s were over"
    else
        (cd "$work" && timeout -k 10 "$limit" "$@") >"$work/log" 2>&1
        code=$? seconds=$(($(date +%s) - begin))
        case $code in 0) result=passed ;; 77) result=skipped ;; 124 | 137) result="timed out" ;; *) result=failed ;; esac
        why=""
        [ $code = 0 ] || why=$(grep -a -m 1 -E 'got|NMSE|[Ee]rror|FAIL|skipped|=========' "$work/log" | cut -c 1-300)
        { echo "==== $stage $name: $result ($code), $seconds s: $*"; tail -c 60000 "$work/log"; } >>"$logs"
    fi
    case $result in passed | skipped) ;; *) failed=$((failed + 1)) ;; esac
    printf '{"stage": "%s", "name": "%s", "result": "%s", "exit": %d, "seconds": %d, "why": "%s"}\n' "$stage" "$name" \
        "$result" "$code" "$seconds" "$(json "$why")" >>"$results"
    echo "$stage $name: $result, $seconds s $why"
}

tests_of() { # the list's fields NAME PROGRAM NP LIMIT ENV ARGS, empty ones kept; single ops before whole programs
    { grep -v '^cli_' "$LIST"; grep '^cli_' "$LIST"; } | grep -E "^[^$tab]*($ONLY)[^$tab]*$tab" |
        sed "s/$tab$tab/$tab-$tab/g; s/$tab$tab/$tab-$tab/g"
}
program_of() {
    case $1 in
    cli/*) echo "sh $SOURCE/tests/$1" ;;
    *) echo "$BIN/$1" ;;
    esac
}

stage_tests() {
    while IFS="$tab" read -r name program np limit env args; do
        [ "$np" = - ] && launch="" || launch="$MPIEXEC -n $np"
        [ "$env" = - ] && env=""
        [ "$args" = - ] && args=""
        run_one tests "$name" "$limit" env $env $launch $(program_of "$program") $(on_device $args) </dev/null
    done <<L
$(tests_of)
L
}

stage_sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        run_one sanitize compute-sanitizer 10 sh -c 'echo "skipped: compute-sanitizer is not on PATH"; exit 77'
        return
    fi
    for tool in memcheck racecheck; do
        while IFS="$tab" read -r name program np limit env args; do
            case $program in test_kernels* | test_*_tiers | test_products) ;; *) continue ;; esac
            [ "$np" = - ] || continue
            run_one sanitize "$tool $name" 180 compute-sanitizer --tool $tool --error-exitcode 9 "$BIN/$program" $args </dev/null
        done <<L
$(tests_of)
L
    done
}

# bench STAGE NAME LIMIT COMMAND...: what it prints also goes to OUT/bench.txt
bench() {
    run_one "$@"
    { echo "## $2"; [ "$result" = passed ] && cat "$work/log"; } >>"$OUT/bench.txt"
}
stage_bench() {
    small=$([ "$DEVICE" = cuda ] || echo yes) # a rehearsal's sizes
    bench bench kernels 240 "$BIN/bench_kernels" "$DEVICE"
    if [ -n "$small" ]; then
        bench bench solve 120 "$BIN/bench_solve" 512 256 16 1 1 "$DEVICE"
        bench bench decode 120 "$GLOWQ" bench --device "$DEVICE" --model "$SOURCE/examples/dense" --prompt 16 --generate 4 --batch 1,2 --repeat 1
        return
    fi
    bench bench solve 240 "$BIN/bench_solve" 22016 4096 64 2 2 "$DEVICE"
    if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        bench bench solve_torch 240 python3 "$SOURCE/tests/bench_solve_torch.py" --device cuda
    fi
    for bits in 4 16; do
        bench bench "8b_w$bits" 240 "$GLOWQ" bench --device "$DEVICE" --synthetic "$SHAPES/llama-3-8b.json" --bits $bits --rank 64 \
            --prompt 2048 --generate 64 --batch 1,8
    done
}

# calibrate STAGE NAME SHAPE SOLVER: run.json, with the time of every stage and layer, goes to OUT
calibrate() {
    shape=$SHAPES/$3 size="--samples 128 --seq-len 2048"
    [ "$DEVICE" = cuda ] || size="--samples 4 --seq-len 64 --layers 1" shape=$SOURCE/examples/$5/config.json
    run_one "$1" "$2" 500 "$GLOWQ" calibrate --device "$DEVICE" --synthetic "$shape" $size --bits 4 --rank 64 --solver "$4" \
        --out "$work/$2.glowq" --overwrite
    [ ! -e "$work/$2.glowq/run.json" ] || cp "$work/$2.glowq/run.json" "$OUT/calibrate_$2.json"
    rm -rf "$work/$2.glowq"
}
stage_calibrate() {
    for solver in krylov qr-rsvd; do
        calibrate calibrate "8b_$solver" llama-3-8b.json $solver dense
    done
}

stage_experts() {
    calibrate experts 30b_a3b qwen3-30b-a3b.json krylov moe
    shape=$SHAPES/qwen3-30b-a3b.json size="--prompt 2048 --generate 64 --batch 1,8"
    [ "$DEVICE" = cuda ] || shape=$SOURCE/examples/moe/config.json size="--prompt 16 --generate 4 --batch 1,2 --repeat 1"
    bench experts 30b_a3b_w4 300 "$GLOWQ" bench --device "$DEVICE" --synthetic "$shape" --bits 4 --rank 16 $size
}

card() { command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo none; }
for stage in $STAGES; do
    stage_begin=$(date +%s)
    case $stage in tests | sanitize | bench | calibrate | experts) stage_$stage ;; *) echo "gpu-suite.sh: no stage $stage" >&2; exit 2 ;; esac
done
sed 's/.*"stage": "\([^"]*\)", "name": "\([^"]*\)", "result": "\([^"]*\)", "exit": \([-0-9]*\), "seconds": \([0-9]*\).*/\1,\2,\3,\4,\5/' \
    "$results" | { echo "stage,name,result,exit,seconds"; cat; } >"$OUT/results.csv"
{
    echo "GPU: $(card). Device: $DEVICE. $("$GLOWQ" --version | head -n 1)"
    echo
    echo "| stage | run | result | s |"
    echo "|---|---|---|---|"
    tail -n +2 "$OUT/results.csv" | awk -F, '{ print "| " $1 " | " $2 " | " $3 " | " $5 " |" }'
} >"$OUT/summary.md"
echo "$(grep -c '"passed"' "$results") passed, $failed failed or not run, $(grep -c '"skipped"' "$results") skipped; $OUT/summary.md"
[ "$failed" = 0 ]
