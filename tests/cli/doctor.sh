# SPDX-License-Identifier: Apache-2.0
# doctor: finds a machine fit, on one rank and on several, and finds each thing that is made wrong here.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
mkdir out_a out_b
verdict() { sed -n "s/^\(ok\|warn\|FAIL\)  *$1  .*/\1/p" out; }
# unfit CHECK WORD COMMAND...: exit code 1, this check fails, and its line or the advice has the word
unfit() {
    check=$1 word=$2; shift 2
    "$@"
    same "$?" 1 "exit code of: $*"
    same "$(verdict "$check")" FAIL "$check in: $* ($(cat out))"
    grep -A 1 "$check" out | grep -q "$word" || fail "no \"$word\" about $check: $(cat out)"
    grep -q "1 check failed" err || fail "more or less than one check failed: $(cat out)"
}
for n in 1 3; do
    expect 0 "all-reduce" ranks "$n" doctor --model "$TINY" --out out_a/new/model.glowq
    grep -q "^FAIL" out && fail "a check fails: $(cat out)"
    same "$(wc -l <err)" 0 "lines of talk"
done
same "$(find out_a out_b -mindepth 1 | wc -l)" 0 "files that doctor leaves behind"
grep -q "sums are right" out || fail "no all-reduce on 3 ranks: $(cat out)"
expect 0 "every rank sees it, and locks hold" ranks 2 doctor
if [ "$(nproc)" -gt 1 ]; then # all ranks of a test may run everywhere
    grep -q "cores  *$(nproc), shared among a host's ranks: $(($(nproc) / 2)) thread" out || fail "two ranks that share cores: $(cat out)"
fi
expect 0 schema_version alone doctor --json --model "$TINY"
python3 - <<'END' || fail "doctor --json lacks checks"
import json
r = json.load(open("out"))
assert r["schema_version"] == 1 and r["fit"] is True and r["n_ranks"] == 1
names = [c["check"] for c in r["checks"]]
for name in ["mpi", "cores", "memory", "descriptors", "blas", "hdf5", "gpu", "nccl", "all-reduce", "model",
             "write, fsync, rename", "locks", "disk space"]:
    assert name in names, name
assert all(c["verdict"] in ("ok", "warn") and c["found"] for c in r["checks"])
END

# The room that a result takes, from configuration and headers, against results.
need_of() { sed -n 's/.*the result takes \(.*\)/\1/p' out; }
for model in dense moe; do
    alone calibrate --model "$GLOWQ_SOURCE_DIR/examples/$model" --text "$GOLDEN/text.txt" --out $model.glowq --rank 32 --samples 8 \
        --seq-len 64 || fail "calibrate $model: $(why)"
    expect 0 "the result takes" alone doctor --model "$GLOWQ_SOURCE_DIR/examples/$model" --rank 32
    python3 - "$(need_of)" "$(cat $model.glowq/layers/*.h5 $model.glowq/head.h5 | wc -c)" <<'END' ||
import sys
number, unit = sys.argv[1].split()
need = float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
sys.exit(not 0.95 < need / float(sys.argv[2]) < 1.1)
END
        fail "$model: doctor says $(need_of), the result has $(cat $model.glowq/layers/*.h5 $model.glowq/head.h5 | wc -c) bytes"
done

# What is wrong is found.
limited() { (ulimit -n 100; alone doctor); }
unfit descriptors "ulimit -n" limited
unfit "write, fsync, rename" "may write" alone doctor --out /proc/nothing
mkdir broken
cp "$TINY/config.json" broken
unfit model "safetensors" alone doctor --model broken
head -c 3000 "$TINY/model.safetensors" >broken/model.safetensors
unfit model "broken/model.safetensors" alone doctor --model broken
pair() { # two ranks that differ: A's environment and folder, B's
    timeout -k 5 "$LIMIT_S" "$GLOWQ_MPIEXEC" -n 1 --wdir "$PWD/$2" env $1 "$GLOWQ" doctor : -n 1 --wdir "$PWD/$4" env $3 "$GLOWQ" \
        doctor >out 2>err
}
unfit "shared folder" "1 of 2 ranks" pair A=1 out_a A=1 out_b
unfit blas "Prescott" pair OPENBLAS_CORETYPE=Prescott out_a OPENBLAS_CORETYPE=Nehalem out_a
alone doctor --json --out /proc/nothing
same "$?" 1 "exit code with --json"
same "$(sed -n 's/^  "fit": \(.*\),/\1/p' out)" false "fit"
if ! ls /dev/nvidiactl >/dev/null 2>&1; then
    unfit gpu "none" ranks 2 doctor --device cuda
fi
if command -v taskset >/dev/null; then
    expect 0 "fewer cores than ranks" taskset -c 0 timeout "$LIMIT_S" "$GLOWQ_MPIEXEC" -n 2 sh -c "\"$GLOWQ\" doctor >>out"
fi
finish
