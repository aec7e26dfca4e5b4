# SPDX-License-Identifier: Apache-2.0
# Memory that isn't there, at a hundred places of a run: a message and exit code 1, or the result all the same; no crash, nobody waits,
# and a calibration goes on from what is left to the bytes of a whole one. $1: failing_malloc.c as a library.
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

calibrate_tiny whole.glowq || fail "calibrate: $(why)"
whole=$(bytes_of whole.glowq)
n=0 at=1
while failing "$at" alone eval --model "$TINY" --text "$GOLDEN/text.txt" --ctx 32 --protocol windows; do
    judge eval
    [ "$code" = 0 ] || [ ! -s out ] || fail "eval: data on stdout in spite of an error, at allocation $at"
    n=$((n + 1)) at=$((at + 17))
done
same "$code" 0 "exit code of eval without a failure"
at=2
while failing "$at" alone generate --model "$TINY" --prompt "hello" --max-tokens 8; do
    judge generate
    n=$((n + 1)) at=$((at + 13))
done
at=5
while rm -rf cut.glowq && failing "$at" calibrate_tiny cut.glowq; do
    judge calibrate
    if [ "$code" != 0 ]; then
        calibrate_tiny cut.glowq || fail "calibrate after the failure at allocation $at: $(why)"
    fi
    same "$(bytes_of cut.glowq)" "$whole" "bytes of a calibration with a failure at allocation $at"
    n=$((n + 1)) at=$((at + 41))
done
same "$code" 0 "exit code of calibrate without a failure"
[ "$n" -gt 60 ] || fail "only $n allocations failed"
finish
