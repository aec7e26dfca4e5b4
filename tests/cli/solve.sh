# SPDX-License-Identifier: Apache-2.0
# solve: from the statistics that calibrate kept, the bytes that calibrate gives, with the same settings and with others, on any
# number of ranks of either; refusals name what is wrong; what is interrupted is resumed.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
SETTINGS="--rank 8 --group-size 64"
solve() { # STATS OUT, more options
    stats=$1 out_dir=$2; shift 2
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" solve --stats "$stats" --model "$TINY" --out "$out_dir" $SETTINGS --json "$@" >out 2>err
}
damage() { printf 'x' | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null; }

# The same bytes as without: statistics are only kept. On 3 ranks the same statistics as on 1.
calibrate_tiny plain.glowq || fail "calibrate: $(why)"
GLOWQ_STATS=nowhere.glowq calibrate_tiny kept.glowq --keep-stats || fail "calibrate --keep-stats: $(why)"
launch_on 3
calibrate_tiny kept3.glowq --keep-stats || fail "calibrate --keep-stats on 3 ranks: $(why)"
LAUNCH=""
[ -e plain.glowq/stats ] && fail "statistics were kept unasked"
same "$(bytes_of kept.glowq)" "$(bytes_of plain.glowq)" "bytes with statistics kept"
same "$(cd kept.glowq/stats && sha256sum *)" "$(cd kept3.glowq/stats && sha256sum *)" "statistics of 1 and 3 ranks"

# Solved again: the same settings, others, another seed of sketches.
for n in 1 2 4; do
    launch_on "$n"
    solve kept.glowq "s$n.glowq" || fail "solve on $n ranks: $(why)"
    same "$(bytes_of "s$n.glowq")" "$(bytes_of plain.glowq)" "bytes solved on $n ranks"
done
for settings in "--rank 16 --bits 3" "--rank 4 --solver qr-rsvd --damp median --alpha 0.1" "--rank 0 --group-size 0" \
    "--rank 8 --sharing module --factor-dtype f16 --exact-energy"; do
    LAUNCH=""
    calibrate_tiny again.glowq --overwrite $settings || fail "calibrate $settings: $(why)"
    launch_on 2
    SETTINGS="--group-size 64 $settings"
    [ "${settings#*group-size}" = "$settings" ] || SETTINGS=$settings
    solve kept3.glowq solved.glowq --overwrite || fail "solve $settings: $(why)"
    same "$(bytes_of solved.glowq)" "$(bytes_of again.glowq)" "bytes of $settings"
done
SETTINGS="--rank 8 --group-size 64" LAUNCH=""
solve kept.glowq seeded.glowq --seed 5 || fail "solve --seed: $(why)"
[ "$(bytes_of seeded.glowq)" != "$(bytes_of plain.glowq)" ] || fail "another seed gives the same sketches"
timeout "$LIMIT_S" "$GLOWQ" verify s1.glowq >out 2>err || fail "verify: $(why)"

# A layer of a solve that was interrupted isn't solved again.
rm s2.glowq/manifest.json s2.glowq/model.h5 s2.glowq/layers/0001.h5
solve kept.glowq s2.glowq || fail "resumed solve: $(why)"
same "$(field n_resumed)" 1 "layers resumed"
same "$(bytes_of s2.glowq)" "$(bytes_of plain.glowq)" "bytes of a resumed solve"

# Statistics that are missing beside finished layers are observed again, and these layers left as they are.
rm kept3.glowq/stats/0000.h5 kept3.glowq/manifest.json
before=$(stat -c %i kept3.glowq/layers/0000.h5)
launch_on 2
calibrate_tiny kept3.glowq --keep-stats || fail "statistics made again: $(why)"
LAUNCH=""
same "$(stat -c %i kept3.glowq/layers/0000.h5)" "$before" "inode of a finished layer"
same "$(cd kept3.glowq/stats && sha256sum *)" "$(cd kept.glowq/stats && sha256sum *)" "statistics made again"

# Experts: their own refit can't be had from statistics, the layer's can.
MOE=$GOLDEN/families/moe_cut/config.json
experts() { # COMMAND, more options
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" "$@" --synthetic "$MOE" --rank 8 --group-size 64 >out 2>err
}
experts calibrate --out moe.glowq --samples 12 --seq-len 64 --seed 3 --keep-stats || fail "calibrate experts: $(why)"
experts calibrate --out layer.glowq --samples 12 --seq-len 64 --seed 3 --expert-refit layer || fail "refit layer: $(why)"
for n in 1 2 3; do
    launch_on "$n"
    experts solve --stats moe.glowq --out "moe$n.glowq" || fail "solve experts on $n ranks: $(why)"
    same "$(bytes_of "moe$n.glowq")" "$(bytes_of layer.glowq)" "bytes of experts solved on $n ranks"
    same "$(grep -c "refitted under their layer's statistics" err)" 1 "times that the refit is told of on $n ranks"
done
launch_on 2
experts calibrate --out moe_kept2.glowq --samples 12 --seq-len 64 --seed 3 --keep-stats || fail "experts on 2 ranks: $(why)"
LAUNCH=""
same "$(cd moe_kept2.glowq/stats && sha256sum *)" "$(cd moe.glowq/stats && sha256sum *)" "experts' statistics of 2 ranks"

# Refusals, on one rank and on two, leave no result.
for LAUNCH in "" "$GLOWQ_MPIEXEC -n 2"; do
    rm -rf bad.glowq
    expect 1 "plain.glowq/stats/0000.h5" solve plain.glowq bad.glowq
    expect 3 "moe.glowq/stats/0000.h5" solve moe.glowq bad.glowq # other shapes
    cp -r "$TINY" other && chmod -R u+w other
    sed -i 's/"rope_theta": 10000.0/"rope_theta": 20000.0/' other/config.json
    expect 3 "another checkpoint" solve kept.glowq bad.glowq --model other
    rm -rf other
    cp -r kept.glowq hurt.glowq && rm hurt.glowq/stats/0001.h5
    expect 3 "hurt.glowq/stats/0001.h5" solve hurt.glowq bad.glowq
    calibrate_tiny elsewhere.glowq --overwrite --keep-stats --samples 11 || fail "another text: $(why)"
    cp elsewhere.glowq/stats/0001.h5 hurt.glowq/stats
    expect 3 "hurt.glowq/stats/0001.h5" solve hurt.glowq bad.glowq
    cp kept.glowq/stats/0001.h5 hurt.glowq/stats
    damage hurt.glowq/stats/0001.h5 200000
    expect 3 "hurt.glowq/stats/0001.h5: /groups/" solve hurt.glowq bad.glowq
    truncate -s 100000 hurt.glowq/stats/0000.h5
    expect 3 "hurt.glowq/stats/0000.h5" solve hurt.glowq bad.glowq
    [ -e bad.glowq/manifest.json ] && fail "a refused solve wrote a manifest"
    rm -rf hurt.glowq
done
LAUNCH=""
expect 2 "--stats" alone solve --model "$TINY" --out bad.glowq
expect 2 "--overwrite" solve kept.glowq s1.glowq --bits 3
finish
