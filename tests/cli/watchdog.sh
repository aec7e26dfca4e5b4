# SPDX-License-Identifier: Apache-2.0
# watchdog.sh PROGRAM: a rank that stops ends all ranks and is named; one that is only slow, or a job that is suspended whole, is
# left alone (tests/test_watchdog.c).
PROGRAM=${1:?usage: watchdog.sh PROGRAM}
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
watched() { # RANKS, WHAT
    timeout -k 5 60 "$GLOWQ_MPIEXEC" -n "$1" "$PROGRAM" "$2" >out 2>err
}
for n in 2 4; do
    expect 0 "done" watched "$n" start
done
expect 0 "rank 2 waits for rank 1 on $(hostname), which is alive and busy for" watched 3 busy
grep -q "step 7 done" err || fail "nothing is said of what the busy rank does: $(cat err)"
same "$(grep -c "waits for rank" err)" 2 "times that a rank is named which is busy for 7 s, from 2 s on, twice as long each time"
for n in 2 3; do
    expect 6 "rank 1 on $(hostname) gives no sign of life for" watched "$n" stop
    same "$(grep -c "error: " err)" 1 "ranks of $n that tell of the stopped one"
done
expect 0 "done" watched 3 pause
[ -s err ] && fail "a job that was suspended talks: $(cat err)"
finish
