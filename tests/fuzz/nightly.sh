#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every fuzz target under clang's libFuzzer with ASan and UBSan, one after the other:
#   tests/fuzz/nightly.sh [TARGET...]
# Last line a target: how many inputs, and what was found. Exit code 0: nothing; 1: something, which is in BUILD/findings; 2: the
# targets can't be built. BUILD/corpus keeps the inputs that reached something new, for the next night.
set -u
cd "$(dirname "$0")/../.."
BUILD="${BUILD:-build-fuzz}"           # preset fuzz is configured and built here
MINUTES="${MINUTES:-5}"                # for each target
JOBS="${JOBS:-$(nproc)}"               # compilers at a time
FLAGS="${FLAGS:-}"                     # more for CMake

command -v clang >/dev/null || { echo "nightly.sh: clang is not installed" >&2; exit 2; }
cmake --preset fuzz -B "$BUILD" $FLAGS >&2 && cmake --build "$BUILD" -j "$JOBS" --target fuzz >&2 || exit 2
[ $# -gt 0 ] || set -- $(ls tests/fuzz/seeds)
mkdir -p "$BUILD/findings"
export GLOWQ_SOURCE_DIR="$PWD" OPENBLAS_NUM_THREADS=1
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
code=0
for target; do
    mkdir -p "$BUILD/corpus/$target"
    log=$BUILD/findings/$target.log
    longest=16384
    case $target in http | api) longest=4096 ;; esac # what a connection carries
    echo "+ $BUILD/tests/fuzz_$target -max_total_time=$((60 * MINUTES)) -max_len=$longest ..." >&2
    found=no
    "$BUILD/tests/fuzz_$target" -max_total_time=$((60 * MINUTES)) -max_len=$longest -timeout=20 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="$BUILD/findings/$target-" "$BUILD/corpus/$target" "tests/fuzz/seeds/$target" \
        >"$log" 2>&1 || { found="$log"; code=1; }
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, findings: $found"
done
exit $code
