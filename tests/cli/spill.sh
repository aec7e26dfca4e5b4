# SPDX-License-Identifier: Apache-2.0
# --memory: what doesn't fit beside the rest is spilled to --scratch; the result has the same bytes, the process is that much smaller,
# nothing stays behind. What doesn't fit even then is refused, with the figures, before anything is made.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
LIMIT_S=600
cat >wide.json <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 4500, "num_hidden_layers": 1,
 "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
 "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"}
END
mkdir scratch
wide() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --synthetic wide.json --rank 8 --samples 4 --seq-len 128 --out "$out_dir" \
        --overwrite "$@" >out 2>err
}
of_ranks() { python3 -c 'import json, sys; print(*(r[sys.argv[2]] for r in json.load(open(sys.argv[1] + "/run.json"))["ranks"]))' "$@"; }
layers_of() { cat "$1"/layers/*.h5 | sha256sum; }
# A hundredth less than the most that a rank of this run needs.
less_than() { of_ranks "$1" planned_bytes | python3 -c 'print("%dK" % (max(map(int, input().split())) * 0.99 / 1024))'; }

for n in 1 2; do
    LAUNCH=""
    [ "$n" = 1 ] || LAUNCH="$GLOWQ_MPIEXEC -n $n"
    wide whole.glowq --memory 100G || fail "on $n ranks: $(why)"
    grep -q "second moments don't fit" err && fail "spilled on $n ranks with 100 GiB"
    memory=$(less_than whole.glowq)
    [ "$n" = 1 ] && alone_memory=$memory
    expect 0 "up to" wide spilled.glowq --memory "$memory" --scratch scratch
    grep -q "go to scratch" err || fail "on $n ranks: $(cat err)"
    same "$(layers_of spilled.glowq)" "$(layers_of whole.glowq)" "bytes with and without spilling on $n ranks"
    [ -z "$(ls -A scratch)" ] || fail "left in the scratch folder: $(ls -A scratch)"
    # 81 MB of sums on one rank, of which a step of 33 MB is in memory
    python3 - "$(of_ranks whole.glowq peak_rss_bytes)" "$(of_ranks spilled.glowq peak_rss_bytes)" "$n" <<'END' || fail "resident memory on $n ranks"
import sys
whole, spilled = ([int(x) for x in a.split()] for a in sys.argv[1:3])
print("resident at most, on %s: %s, spilled %s" % (sys.argv[3], whole, spilled))
assert sum(spilled) < sum(whole) - 35e6
END
done
LAUNCH=""
# In the folder of the result unless said; kept, and solved again, as well.
expect 0 "go to kept.glowq" wide kept.glowq --memory "$alone_memory" --keep-stats
wide whole.glowq --keep-stats || fail "statistics: $(why)"
same "$(cat kept.glowq/stats/* | sha256sum)" "$(cat whole.glowq/stats/* | sha256sum)" "statistics with and without spilling"
expect 0 energy alone solve --synthetic wide.json --stats kept.glowq --out again.glowq --rank 8 --memory 100G
again=$(less_than again.glowq)
expect 0 "go to scratch" alone solve --synthetic wide.json --stats kept.glowq --out again.glowq --overwrite --rank 8 --memory "$again" --scratch scratch
same "$(layers_of again.glowq)" "$(layers_of whole.glowq)" "bytes solved from statistics that were spilled"
# A device whose memory isn't the host's.
for device in cpu:check cuda:sim; do
    [ "$device" = cuda:sim ] && where="the host's memory" || where=scratch
    if ! wide there.glowq --device $device --memory 100G --samples 1; then
        grep -q "not available\|this build has no" err || fail "$device: $(why)"
        continue
    fi
    expect 0 "go to $where" wide spilled.glowq --device $device --samples 1 --memory "$(less_than there.glowq)" --scratch scratch
    same "$(layers_of spilled.glowq)" "$(layers_of there.glowq)" "bytes with and without spilling on $device"
done

# ---- refused
expect 4 "--memory allows 20.00 MiB" wide never.glowq --memory 20M
grep -q "second moments" err || fail "the figures: $(why)"
[ -e never.glowq ] && fail "something was made that can't be finished"
expect 1 "no-such-folder" wide never.glowq --memory "$alone_memory" --scratch no-such-folder
for size in 5Q G 0 -1 5GB; do expect 2 "like 5G" wide never.glowq --memory=$size; done
mkdir small
if unshare -rm sh -c 'mount -t tmpfs -o size=64k tmpfs small' 2>/dev/null; then
    unshare -rm sh -c "mount -t tmpfs -o size=4m tmpfs small && timeout -k 5 $LIMIT_S \"\$@\" >out 2>err" sh "$GLOWQ" calibrate --synthetic \
        wide.json --rank 8 --samples 4 --seq-len 128 --out never.glowq --memory "$alone_memory" --scratch small
    same $? 4 "exit code of a scratch folder that is too small"
    grep -q "small has .* MiB free: --scratch names another" err || fail "a scratch folder that is too small: $(why)"
fi
[ -e never.glowq ] && fail "something was made that can't be finished"
rm -rf ./*.glowq
finish
