# SPDX-License-Identifier: Apache-2.0
# The output's file system is full: a message that says so, exit code 1 or 4, on all ranks, and nothing half written under a
# final name. Needs a file system of its own, which an unprivileged mount namespace gives where the kernel allows it.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need unshare
mkdir small
unshare -rm sh -c 'mount -t tmpfs -o size=64k tmpfs small' 2>/dev/null || skip "this machine allows no mount namespace"
for grid in 1x1 1x2 2x1; do
    launch_on $((${grid%x*} * ${grid#*x}))
    for size in 64k 200k; do
        unshare -rm sh -c "mount -t tmpfs -o size=$size tmpfs small && timeout -k 5 $LIMIT_S $LAUNCH \"\$@\" >out 2>err;
            echo \$? >code; find small -type f -name '*.h5' ! -name '.*' >files; find small -name manifest.json >>files
            for f in \$(grep layers files); do cp \$f . ; done" sh \
            "$GLOWQ" calibrate --model "$TINY" --text "$GOLDEN/text.txt" --out small/x.glowq --rank 8 --group-size 64 \
            --samples 12 --seq-len 64 --grid $grid
        code=$(cat code)
        case $code in 1 | 4) ;; *) fail "exit $code of $grid on a disk of $size: $(why)" ;; esac
        grep -qi "space\|does not fit\|disk" err || fail "a full disk of $size isn't named by $grid: $(why)"
        grep -q manifest files && fail "a manifest stands on a full disk of $size"
        for f in 0*.h5; do # what did get its final name is whole
            [ -e "$f" ] && { "$GLOWQ" inspect "$f" >/dev/null 2>&1 || fail "$f is damaged on a full disk of $size"; rm "$f"; }
        done
    done
done

# Statistics that can't fit are refused before anything is observed; hidden states that can't are done without.
on_small() { # SIZE, more options
    size=$1; shift
    unshare -rm sh -c "mount -t tmpfs -o size=$size tmpfs small && timeout -k 5 $LIMIT_S \"\$@\" >out 2>err; code=\$?
        find small -name '0*.h5' >files; exit \$code" sh "$GLOWQ" calibrate --model "$TINY" --text "$GOLDEN/text.txt" \
        --out small/x.glowq --rank 8 --group-size 64 --samples 12 --seq-len 64 "$@"
}
expect 4 "stats needs" on_small 600k --keep-stats
[ -s files ] && fail "layers were made though their statistics don't fit: $(cat files)"
expect 0 "no room" on_small 1m --hidden-every 1
same "$(grep -c "no room" err)" 1 "times that hidden states are said to have no room"
finish
