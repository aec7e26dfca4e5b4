# SPDX-License-Identifier: Apache-2.0
# no_memory.sh LIBRARY [all]: memory that isn't there, at a hundred places of a run: a message and exit code 1, or the result all the
# same; no crash, nobody waits, and a calibration goes on from what is left to the bytes of a whole one. Then on one of two ranks; all: at
# every place there. LIBRARY: failing_malloc.c.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
ldd "$GLOWQ" | grep -q "libasan\|libtsan" && skip "a sanitizer has an allocator of its own"
FAILING=$1
LIMIT_S=60

# failing N COMMAND...: with the N-th allocation failing; 1 if there weren't as many.
failing() {
    at=$1; shift
    rm -f told
    FAIL_AT=$at FAIL_TOLD=$PWD/told LD_PRELOAD=$FAILING "$@"
    code=$?
    [ -e told ]
}
# judge NAME: of one that failed: $code and what was said.
judge() {
    case $code in
    0) return ;; # what can be done without
    1) grep -aq "^glowq.*: " err || fail "$1: exit code 1 and no word, at allocation $at" ;;
    *) fail "$1: exit code $code at allocation $at: $(why)" ;;
    esac
}

# What is printed is all of it, or nothing: jansson passes over some failures, which base/json.c remembers.
facts() { sed '/_s": \|"seconds": /d' out; }
# complete STEP FIRST COMMAND...: its output with every STEPth allocation failing, from FIRST on.
complete() {
    step=$1 at=$2; shift 2
    alone "$@" || fail "$1: $(why)"
    facts=$(facts)
    while failing "$at" alone "$@"; do
        judge "$1"
        if [ "$code" = 0 ]; then
            same "$(facts)" "$facts" "what $1 prints with a failure at allocation $at"
        elif [ -s out ]; then
            fail "$1: data on stdout in spite of an error, at allocation $at"
        fi
        n=$((n + 1)) at=$((at + step))
    done
    same "$code" 0 "exit code of $1 without a failure"
}
n=0
complete 5 1 calibrate --model a --text b --out c --print-config --json
complete 151 1 eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 32 --protocol windows --json --per-token-nll
complete 307 1 eval --model "$TINY" --reference "$TINY" --text "$GOLDEN/text.txt" --ctx 32 --max-tokens 300 --json
complete 137 2 generate --model "$TINY" --prompt "hello" --max-tokens 8 --json
complete 61 3 inspect "$TINY" --json

calibrate_tiny whole.glowq || fail "calibrate: $(why)"
whole=$(bytes_of whole.glowq)
at=5
while rm -rf cut.glowq && failing "$at" calibrate_tiny cut.glowq; do
    judge calibrate
    if [ "$code" != 0 ]; then
        calibrate_tiny cut.glowq || fail "calibrate after the failure at allocation $at: $(why)"
    fi
    same "$(bytes_of cut.glowq)" "$whole" "bytes of a calibration with a failure at allocation $at"
    n=$((n + 1)) at=$((at + 211))
done
same "$code" 0 "exit code of calibrate without a failure"
[ "$n" -gt 45 ] || fail "only $n allocations failed"

# The second of two ranks has no memory, and the first none of its troubles: one of them tells, and both end.
cat >second.sh <<'END'
[ "${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}" = 1 ] && export LD_PRELOAD=$FAILING
exec "$@"
END
export FAILING FAIL_TOLD=$PWD/told
LAUNCH="$GLOWQ_MPIEXEC -n 2 sh second.sh"
LIMIT_S=30 # of a second's work
next() { # the place after $at: all, or those of the start and some of the rest
    if [ "${2:-}" = all ] || [ "$at" -lt 4 ]; then at=$((at + 1)); else at=$((at + $1)); fi
}
sweep() { # STEP all|"" options of calibrate...
    step=$1 which=$2 at=1 n=0; shift 2
    while rm -rf cut.glowq told; FAIL_AT=$at calibrate_tiny cut.glowq "$@"; code=$?; [ -e told ]; do
        judge "calibrate $* on the second of two ranks"
        # What a solver allocates is agreed on: its ranks leave in order, while others may be ended by the one that is short.
        grep -aq "rank 1, calib/\(exact\|reduce\|qr_rsvd\|krylov\|orth\|solve\|factors\|energy\|metric\)\.c" err &&
            grep -aq MPI_ABORT err && fail "calibrate $*: ranks of a solver part in disorder at allocation $at: $(why)"
        last=$at n=$((n + 1))
        next "$step" "$which"
    done
    same "$code" 0 "exit code of calibrate $* without a failure"
    [ "$n" -gt 5 ] || fail "calibrate $*: only $n allocations failed"
    rm -rf cut.glowq
    FAIL_AT=$last calibrate_tiny cut.glowq "$@"
    FAIL_AT=0 calibrate_tiny cut.glowq "$@" || fail "calibrate $* after the failure at allocation $last: $(why)"
    same "$(bytes_of cut.glowq)" "$whole" "bytes of calibrate $* after a failure at allocation $last"
}
sweep 971 "${2:-}" --grid 1x2
sweep 953 "${2:-}" --grid 2x1
[ "${2:-}" != all ] || { calibrate_tiny qr.glowq --solver qr-rsvd --exact-energy && whole=$(bytes_of qr.glowq)
    sweep 1 all --grid 1x2 --solver qr-rsvd --exact-energy; }
finish
