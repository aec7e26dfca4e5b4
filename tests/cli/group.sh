# SPDX-License-Identifier: Apache-2.0
# In a control group that leaves a job less memory than the machine has (as Slurm's --mem does): what doesn't fit is refused, not killed
# by the kernel, and what does gives the same bytes as outside.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"

own=$(sed -n 's/^[0-9]*:[^:]*\bmemory\b[^:]*://p' /proc/self/cgroup) top=/sys/fs/cgroup/memory limit=memory.limit_in_bytes
if [ -z "$own" ]; then # version 2
    own=$(sed -n 's/^0:://p' /proc/self/cgroup) top=/sys/fs/cgroup limit=memory.max
fi
for parent in "$top$own" "$top"; do # a container may see its own group at the top
    group=${parent%/}/glowq_test_$$
    mkdir "$group" 2>/dev/null && break
done
[ -w "$group/$limit" ] || { rmdir "$group" 2>/dev/null; skip "no control group with a limit of memory can be made here"; }
grouped() { timeout -k 5 "$LIMIT_S" sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$GLOWQ" "$@" >out 2>err; }
calibrate() { # HOW OUT
    "$1" calibrate --model "$DENSE" --text "$DENSE_TEXT" --samples 16 --seq-len 512 --out "$2"
}

# Hidden states alone are more than the limit: what the program itself takes depends on the build, with a CUDA module 70 MB more.
echo 150M >"$group/$limit"
large="--samples 400 --seq-len 512"
expect 4 "this machine has" grouped calibrate --synthetic "$DENSE/config.json" --out small.glowq $large
[ -e small.glowq ] && fail "something is left of what didn't fit"
expect 4 "none fits" grouped plan --model "$DENSE" $large
grouped doctor
grep -q "memory  *1[0-4][0-9] MiB available" out || fail "doctor: $(grep memory out)"
echo 400M >"$group/$limit"
expect 0 energy calibrate grouped grouped.glowq
expect 0 energy calibrate alone alone.glowq
same "$(bytes_of grouped.glowq)" "$(bytes_of alone.glowq)" "bytes inside and outside of a group"
rmdir "$group"
finish
