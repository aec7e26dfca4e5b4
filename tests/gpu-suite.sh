#!/bin/sh
# gpu-suite.sh OUT [STAGE...]: runs what needs a GPU, on a machine without CMake too (in a bundle: run.sh tests/gpu-suite.sh OUT).
#   tests      the cases that CTest labels gpu, each a process of its own with a limit (a CUDA error sticks to its process)
#   sanitize   the op tests under compute-sanitizer: memcheck, racecheck
#   bench      kernels, solver against the published procedure, decode and prefill of an 8B model, what --tune finds for it
#   calibrate  a whole synthetic 8B model, 128 x 2048 tokens, by both solvers
#   experts    a whole synthetic Qwen3-30B-A3B: calibrated on 128 x 2048 tokens, decode and prefill
# Every stage begins with the device's opening, which tries the fast kernels: where that fails and without them doesn't, the stage goes
# on without them (GLOWQ_DISABLE=mma; the tiers' own tests still run each).
# A stage starts nothing after BUDGET seconds and ends a minute later; what it didn't reach it names. OUT gets results.jsonl (a line
# a run, written at once), logs.txt, what the benches leave and, after each stage, results.csv and summary.md of all runs in OUT, the
# last of each: at most 8 files. Exits with 0 where this call's runs passed, at least one of them, or were skipped.
# DEVICE=cuda:sim rehearses all of it on the kernels compiled for the host.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUT [STAGE...]" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 1
shift
STAGES=${*:-tests sanitize bench calibrate experts}
DEVICE="${DEVICE:-cuda}"                       # cuda, or cuda:sim
BUDGET="${BUDGET:-520}"                        # seconds a stage may go on starting runs
TEST_LIMIT="${TEST_LIMIT:-$([ "$DEVICE" = cuda ] && echo 150 || echo 900)}" # seconds of a test at most: one that hangs leaves the others time
ONLY="${ONLY:-.}"                              # of the tests: those whose name matches, e.g. what an earlier call didn't reach
SOURCE="${GLOWQ_SOURCE_DIR:-$(cd "$(dirname "$0")/.." && pwd)}"
GLOWQ="${GLOWQ_BINARY:-$SOURCE/build/glowq}"
BIN=$(dirname "$GLOWQ")                        # a bundle's programs stand together, a build's tests one folder below
LIST=$SOURCE/tests/gpu.list
if [ -d "$BIN/tests" ]; then LIST=$BIN/tests/gpu.list BIN=$BIN/tests; fi
MPIEXEC="${GLOWQ_MPIEXEC:-mpirun}"
SHAPES=$SOURCE/examples/shapes
HOST_LIBRARIES=${GLOWQ_HOST_LIBRARIES-${LD_LIBRARY_PATH-}} # where the machine's own programs look (a bundle's run.sh puts its own first)
export GLOWQ_SOURCE_DIR="$SOURCE" GLOWQ_BINARY="$GLOWQ" GLOWQ_MPIEXEC="$MPIEXEC" OPENBLAS_NUM_THREADS=1 GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
[ -n "${OPENBLAS_CORETYPE:-}" ] || ! grep -q -m 1 avx512dq /proc/cpuinfo || export OPENBLAS_CORETYPE=SKYLAKEX # as glowq does for itself
[ ! -r "$SOURCE/launch/mpi_env.sh" ] || . "$SOURCE/launch/mpi_env.sh" # a bundle has done so
[ -r "$LIST" ] || { echo "gpu-suite.sh: $LIST isn't there" >&2; exit 1; }

work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
results=$OUT/results.jsonl logs=$OUT/logs.txt
: >>"$results"
passed=0 failed=0 skipped=0 tab=$(printf '\t')

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
        [ "$limit" -le $((BUDGET + 60 - begin + stage_begin)) ] || limit=$((BUDGET + 60 - begin + stage_begin))
        (cd "$work" && timeout -k 10 "$limit" "$@") >"$work/log" 2>&1
        code=$? seconds=$(($(date +%s) - begin))
        case $code in 0) result=passed ;; 77) result=skipped ;; 124 | 137) result="timed out" ;; *) result=failed ;; esac
        why=""
        [ $code = 0 ] || why=$(grep -av COMPUTE-SANITIZER "$work/log" | grep -a -m 1 -E 'got|NMSE|[Ee]rror|FAIL|skipped|=========' | cut -c 1-300)
        { echo "==== $stage $name: $result ($code), $seconds s: $*"; tail -c 60000 "$work/log"; } >>"$logs"
    fi
    case $result in passed) passed=$((passed + 1)) ;; skipped) skipped=$((skipped + 1)) ;; *) failed=$((failed + 1)) ;; esac
    printf '{"stage": "%s", "name": "%s", "result": "%s", "exit": %d, "seconds": %d, "why": "%s"}\n' "$stage" "$name" \
        "$result" "$code" "$seconds" "$(json "$why")" >>"$results"
    echo "$stage $name: $result, $seconds s $why"
}

# The list's fields NAME PROGRAM NP LIMIT ENV ARGS, empty ones kept; first what tells most: single ops, then their fast tiers, then
# solvers and models, in bf16 before f32, several ranks and whole programs last.
tests_of() {
    sed "s/$tab$tab/$tab-$tab/g; s/$tab$tab/$tab-$tab/g" "$LIST" | awk -F "$tab" -v OFS="$tab" -v only="$ONLY" '$1 ~ only {
        order = $1 ~ /^kernels_/ ? 1 : $1 ~ /_tiers_|^rows_|^products_|^sampler_/ ? 2 : $1 ~ /^cli_/ ? 9 : 4
        print order + ($1 ~ /_f32$/ ? 2 : 0) + ($3 != "-" || $1 ~ /nccl/ ? 3 : 0), $0
    }' | sort -s -n -k 1,1 | cut -f 2-
}
program_of() {
    case $1 in
    cli/*) echo "sh $SOURCE/tests/$1" ;;
    *) echo "$BIN/$1" ;;
    esac
}

stage_tests() {
    while IFS="$tab" read -r name program np limit env args; do
        [ -n "$name" ] || { echo "gpu-suite.sh: no test's name matches ONLY=$ONLY" >&2; exit 2; }
        [ "$np" = - ] && launch="" || launch="$MPIEXEC -n $np"
        [ "$env" = - ] && env=""
        [ "$args" = - ] && args=""
        [ "$limit" -le "$TEST_LIMIT" ] || limit=$TEST_LIMIT
        run_one tests "$name" "$limit" env $env $launch $(program_of "$program") $(on_device $args) </dev/null
    done <<L
$(tests_of)
L
}

stage_sanitize() {
    toolkit=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}} sanitizer=""
    for s in "$(command -v compute-sanitizer)" "$toolkit/bin/compute-sanitizer" "$toolkit/compute-sanitizer/compute-sanitizer"; do
        [ -n "$sanitizer" ] || [ ! -x "$s" ] || sanitizer=$s
    done
    if [ -z "$sanitizer" ]; then
        run_one sanitize compute-sanitizer 10 sh -c 'echo "skipped: no compute-sanitizer on PATH or in the CUDA toolkit"; exit 77'
        return
    fi
    while IFS="$tab" read -r test program np limit env args; do
        case $test in *_f32) continue ;; esac # there the kernels are the plain ones and the library's
        case $program in test_kernels* | test_*_tiers | test_products) ;; *) continue ;; esac
        [ "$np" = - ] || continue
        # Every call's answer is looked at by the program; the libraries try some that fail.
        run_one sanitize "memcheck $test" 180 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$BIN/$program" $args \
            </dev/null
        run_one sanitize "racecheck $test" 180 "$sanitizer" --tool racecheck --error-exitcode 9 "$BIN/$program" $args </dev/null
    done <<L
$(tests_of)
L
}

# bench STAGE NAME LIMIT COMMAND...: what it prints also goes to OUT/bench.txt
bench() {
    run_one "$@"
    { echo "## $2"; [ "$result" = passed ] && cat "$work/log"; } >>"$OUT/bench.txt"
}
stage_bench() {
    small=$([ "$DEVICE" = cuda ] || echo yes) # a rehearsal's sizes
    if [ -n "$small" ]; then
        bench bench kernels 240 "$BIN/bench_kernels" "$DEVICE"
        bench bench solve 120 "$BIN/bench_solve" 512 256 16 1 1 "$DEVICE"
        bench bench decode 120 "$GLOWQ" bench --device "$DEVICE" --model "$SOURCE/examples/dense" --prompt 16 --generate 4 --batch 1,2 --repeat 1
        return
    fi
    eight="--device $DEVICE --synthetic $SHAPES/llama-3-8b.json --rank 64"
    bench bench 8b_w4 150 "$GLOWQ" bench $eight --bits 4 --prompt 2048 --generate 64 --batch 1,8
    bench bench solve 150 "$BIN/bench_solve" 22016 4096 64 2 2 "$DEVICE"
    bench bench solve_torch 150 env LD_LIBRARY_PATH="$HOST_LIBRARIES" sh -c 'python3 -c "import torch; assert torch.cuda.is_available()" ||
        { echo "skipped: python3 has no PyTorch that sees a GPU"; exit 77; }
        exec python3 "$1" --device cuda' sh "$SOURCE/tests/bench_solve_torch.py"
    bench bench kernels 200 "$BIN/bench_kernels" "$DEVICE"
    bench bench 8b_w16 150 "$GLOWQ" bench $eight --bits 16 --prompt 2048 --generate 64 --batch 1,8
    bench bench 8b_tune 150 "$GLOWQ" bench $eight --bits 4 --tune
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

open_device() { # NAME: prefill, decode steps, their recording
    run_one "$stage" "$1" 120 "$GLOWQ" bench --device "$DEVICE" --model "$SOURCE/examples/dense" --prompt 16 --generate 4 --batch 1 --repeat 1
}
try_device() {
    [ -z "${GLOWQ_DISABLE:-}" ] || return 0
    open_device opening
    [ "$result" = failed ] || [ "$result" = "timed out" ] || return 0
    export GLOWQ_DISABLE=mma
    open_device opening_plain
    [ "$result" = passed ] || unset GLOWQ_DISABLE
}

card() { command -v nvidia-smi >/dev/null && LD_LIBRARY_PATH=$HOST_LIBRARIES nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo none; }
summarize() {
    echo "stage,name,result,exit,seconds" >"$OUT/results.csv"
    sed 's/.*"stage": "\([^"]*\)", "name": "\([^"]*\)", "result": "\([^"]*\)", "exit": \([-0-9]*\), "seconds": \([0-9]*\).*/\1,\2,\3,\4,\5/' \
        "$results" | awk -F, '!($1 FS $2 in last) { order[++n] = $1 FS $2 } { last[$1 FS $2] = $0 } END { for (i = 1; i <= n; i++) print last[order[i]] }' \
        >>"$OUT/results.csv"
    {
        echo "GPU: $(card). Device: $DEVICE${GLOWQ_DISABLE:+ without $GLOWQ_DISABLE}. $("$GLOWQ" --version | awk 'NR <= 2 { printf "%s %s%s", $1, $2, (NR == 1 ? ", " : "") }')."
        echo
        echo "| stage | run | result | s |"
        echo "|---|---|---|---|"
        tail -n +2 "$OUT/results.csv" | awk -F, '{ print "| " $1 " | " $2 " | " $3 " | " $5 " |" }'
    } >"$OUT/summary.md"
}

for stage in $STAGES; do
    case $stage in tests | sanitize | bench | calibrate | experts) ;; *) echo "gpu-suite.sh: no stage $stage" >&2; exit 2 ;; esac
done
for stage in $STAGES; do
    stage_begin=$(date +%s)
    try_device
    stage_$stage
    summarize
done
echo "$passed passed, $failed failed or not run, $skipped skipped; $OUT/summary.md"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
