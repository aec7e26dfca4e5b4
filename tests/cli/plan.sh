# SPDX-License-Identifier: Apache-2.0
# Plans, and the calibrations that were planned: memory, network, disk. plan.sh dense | experts compares them on 1 to 4 ranks and
# several grids; plan.sh serve: a server's KV cache; plan.sh words: what is refused, the fewest ranks, the best grid, serving,
# profiles, the batch file.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
LIMIT_S=600
EXAMPLES=$GLOWQ_SOURCE_DIR/examples
LLAMA=$EXAMPLES/shapes/llama-2-70b.json

# The planned memory is what the run says it planned; with S of every group in the type that it turned out to have, it is within 5%
# of what the run held; every rank sends and receives in every stage what was planned (but for a few numbers that all ranks agree on;
# of tokens that travel to experts, which the router sends, a tenth more or less); the result is as large. run.json and the layers' bytes are the run's own account.
compare() { # what
    python3 - plan.json out.glowq "$1" <<'END' || fail "the plan of $1"
import glob, json, os, sys
plan, run = json.load(open(sys.argv[1])), json.load(open(sys.argv[2] + "/run.json"))
bad = 0
def check(ok, text):
    global bad
    if not ok:
        bad += 1
        print("  " + text)
check(plan["n_ranks"] == len(plan["ranks"]) == len(run["ranks"]), "ranks")
check(plan.get("expert_traffic") == run.get("expert_traffic"), "what travels")
for p, r in zip(plan["ranks"], run["ranks"]):
    ratio = r["planned_run_bytes"] / r["peak_bytes"]
    check(p["memory_bytes"] == r["planned_bytes"], "rank %d: plan says %d bytes, calibrate %d" % (p["rank"], p["memory_bytes"], r["planned_bytes"]))
    check(sum(p["memory"].values()) == p["memory_bytes"], "items")
    check(r["planned_run_bytes"] <= r["planned_bytes"], "rank %d: as it was it takes more than the most" % p["rank"])
    check(r["groups"]["f64"] > 0 or r["planned_run_bytes"] == p["memory_f32_bytes"], "rank %d: all in f32 takes %d bytes, planned %d" % (p["rank"], r["planned_run_bytes"], p["memory_f32_bytes"]))
    check(0.95 <= ratio <= 1.05, "rank %d: planned memory is %.3f of the peak" % (p["rank"], ratio))
    for way in "sent", "received":
        for stage, planned in p["network"]["stages"].items():
            counted = r["network"]["stages"][stage][way]
            loose = 0.1 if stage == "forward" and run.get("expert_traffic") == "tokens" else 1e-4
            check(abs(planned[way] - counted) <= 256 + counted * loose, "rank %d %s %s: planned %d, counted %d" % (p["rank"], stage, way, planned[way], counted))
    check((p["network"]["sent_bytes"] + p["network"]["received_bytes"] > 0) == (len(run["ranks"]) > 1), "traffic")
    print("%s, rank %d: memory %.3f of the peak, %d bytes sent, %d received as planned" % (sys.argv[3], p["rank"], ratio, r["network"]["sent_bytes"], r["network"]["received_bytes"]))
disk = sum(map(os.path.getsize, glob.glob(sys.argv[2] + "/layers/*.h5") + [sys.argv[2] + "/head.h5"]))
check(abs(plan["result_bytes"] / disk - 1) < 0.02, "result of %d bytes, planned %d" % (disk, plan["result_bytes"]))
stats = sum(map(os.path.getsize, glob.glob(sys.argv[2] + "/stats/*.h5")))
check(stats == 0 or abs(plan["stats_bytes"] / stats - 1) < 0.02, "statistics of %d bytes, planned %d" % (stats, plan["stats_bytes"]))
sys.exit(bad > 0)
END
}
# Two blocks of the solver, whatever the numbers: a plan can't know when it stops.
both() { # RANKS MODEL options
    n=$1 model=$2; shift 2
    set -- --model "$EXAMPLES/$model" --samples 8 --seq-len 512 --max-steps 1 "$@"
    rm -rf out.glowq
    expect 0 energy ranks "$n" calibrate "$@" --text "$EXAMPLES/texts/calibration.txt" --out out.glowq
    cp err told
    expect 0 n_ranks alone plan "$@" --ranks "$n" --json
    mv out plan.json
    compare "$model on $n, $*"
}
# The same with a hundredth less memory than a rank needs: second moments are spilled, as many bytes as calibrate says.
spilled() { # RANKS MODEL options
    n=$1 model=$2; shift 2
    set -- --rank 8 "$@"
    expect 0 n_ranks alone plan --model "$EXAMPLES/$model" --samples 8 --seq-len 512 --max-steps 1 "$@" --ranks "$n" --memory 100G --json
    same "$(field spilled_bytes)" 0 "bytes spilled with 100 GiB"
    memory=$(field memory_bytes | python3 -c 'print("%dK" % (int(input()) * 0.99 / 1024))')
    both "$n" "$model" "$@" --memory "$memory" --scratch .
    python3 - plan.json told "$memory" <<'END' || fail "a plan that spills on $n: $(why told)"
import json, sys
plan, told, memory = json.load(open(sys.argv[1])), open(sys.argv[2]).read(), int(sys.argv[3][:-1]) * 1024
ranks = [p["spilled_bytes"] for p in plan["ranks"]]
assert plan["allowed_bytes"] == memory >= plan["memory_bytes"], plan
assert plan["spilled_to"] == "disk" and min(ranks) > 0 and plan["spilled_bytes"] == sum(ranks), plan
assert plan["disk_bytes"] == plan["result_bytes"] + plan["hidden_bytes"] + sum(ranks), plan
assert "--memory %s --scratch ." % sys.argv[3] in plan["command"], plan["command"]
of_rank = "%.1f MiB" % (ranks[0] / 2**20) if ranks[0] >= 999.5 * 1024 else "%.1f KiB" % (ranks[0] / 1024)
assert "up to %s of each rank go to ." % of_rank in told, told
END
}
# The same of `glowq solve`, from statistics that one rank kept; on any grid.
solved() { # RANKS MODEL options
    n=$1 model=$2; shift 2
    if [ ! -e "$model.glowq" ]; then
        expect 0 energy alone calibrate --model "$EXAMPLES/$model" --text "$EXAMPLES/texts/calibration.txt" --samples 8 \
            --seq-len 512 --rank 8 --keep-stats --out "$model.glowq"
    fi
    set -- --stats "$model.glowq" --model "$EXAMPLES/$model" --max-steps 1 "$@"
    rm -rf out.glowq
    expect 0 energy ranks "$n" solve "$@" --out out.glowq
    expect 0 n_ranks alone plan "$@" --ranks "$n" --json
    mv out plan.json
    compare "solve of $model on $n, $*"
}
case ${1:-words} in
dense)
    for n in 1 2 3; do both $n dense --keep-stats; done
    both 3 dense --sharing module
    both 2 dense --solver qr-rsvd --power 1
    both 2 dense --grid 2x1
    both 4 dense --grid 2x2 --waves 2
    both 3 dense --grid 3x1 --waves 1
    for n in 1 2; do spilled $n dense --grid 1x$n --waves 1; done
    solved 1 dense
    solved 3 dense --bits 3
    finish ;;
experts)
    both 1 moe
    for n in 2 3; do
        for traffic in weights tokens; do both $n moe --expert-traffic $traffic; done
    done
    both 2 moe --sharing module --keep-stats
    both 2 moe --grid 2x1 --waves 1
    both 4 moe --grid 2x2 --expert-traffic tokens
    solved 4 moe --grid 2x2
    both 3 moe --expert-refit layer --rank 16 --expert-rank 8
    finish ;;
serve) # the simulated GPU has the memory that it is told: what is planned for it is what a server then has
    calibrate_tiny tiny.glowq || fail "calibrate: $(why)"
    export GLOWQ_SIM_MEMORY=20000000
    set -- --device cuda:sim --model tiny.glowq --max-sequences 4096
    alone plan --serve "$@" --ranks 1 --json
    case $? in
    0) ;;
    3) skip "$(why)" ;;
    *) fail "plan --serve: $(why)" ;;
    esac
    mv out plan.json
    timeout -k 5 "$LIMIT_S" "$GLOWQ" serve "$@" --port 0 >out 2>err &
    server=$!
    while kill -0 $server 2>/dev/null && ! grep -q "ready: http" err; do sleep 0.1; done
    kill $server
    wait $server || fail "serve: $(why)"
    planned=$(sed -n 's/.*"kv_tokens": \([0-9]*\),.*/\1/p' plan.json)
    [ "$planned" -gt 0 ] && [ "$planned" -lt $((4096 * 512)) ] || fail "the memory is no limit: $planned tokens"
    same "$planned" "$(sed -n 's/^KV cache: \([0-9]*\) tokens.*/\1/p' err)" "tokens of the KV cache, planned and had"
    finish ;;
esac

# ---- grids: all of the ranks' are compared, the fastest that fits is planned, and told to calibrate
eight="--synthetic $LLAMA --gpu-memory 80 --ranks 8 --ranks-per-host 4"
PROFILE=$GLOWQ_SOURCE_DIR/docs/results/plan-h100-assumed.json
expect 0 "planned below" alone plan $eight --profile "$PROFILE"
expect 0 grids alone plan $eight --profile "$PROFILE" --json
python3 - out <<'END' || fail "the comparison of grids"
import json, sys
j = json.load(open(sys.argv[1]))
g = {x["grid"]: x for x in j["grids"]}
assert list(g) == ["1x8", "2x4", "4x2", "8x1"], list(g)
assert [x["waves"] for x in j["grids"]] == [80, 40, 20, 10], g
best = min((x for x in j["grids"] if x["fits"]), key=lambda x: x["seconds"])
assert best["grid"] == "%dx%d" % (j["stages"], j["replicas"]) and "--grid " + best["grid"] in j["command"], best
assert abs(best["seconds"] - j["seconds"]) < 1e-6 * best["seconds"] and best["memory_bytes"] == j["memory_bytes"]
# Weights, sums and what a solver moves stay among a stage's ranks: fewer ranks a stage, less network; hidden states need more memory.
assert all(a["network_bytes"] > b["network_bytes"] and a["memory_bytes"] < b["memory_bytes"] for a, b in zip(j["grids"], j["grids"][1:])), g
END
# Where it doesn't fit, another does; without times it is a stage a host, as calibrate does it by itself.
expect 0 "doesn't fit" alone plan $eight --gpu-memory 15 --profile "$PROFILE"
expect 0 "as 4x2" alone plan $eight --gpu-memory 15 --profile "$PROFILE"
expect 0 "as 2x4" alone plan $eight
expect 0 "as 4x2" alone plan $eight --grid 4x2
expect 0 "4x2 --waves 10" alone plan --synthetic "$LLAMA" --gpu-memory 80 --grid 4x2 --waves 10
expect 4 "rank 0 of 8 as 8x1 needs" alone plan $eight --gpu-memory 15 --grid 8x1
expect 4 "try more --waves, or 17 ranks" alone plan $eight --samples 128 --grid 8x1 --waves 1 --gpu-memory 40
expect 2 "--grid 4x2 is for 8 ranks, not --ranks 4" alone plan --synthetic "$LLAMA" --grid 4x2 --ranks 4
expect 2 "--grid \"4by2\"" alone plan --synthetic "$LLAMA" --grid 4by2

# ---- the fewest ranks: hidden states are what ranks share
many="--model $EXAMPLES/dense --samples 2000 --seq-len 512"
expect 0 "\"n_ranks\": 1" alone plan $many --host-memory 4 --json
expect 0 "\"n_ranks\": 4" alone plan $many --gpu-memory 0.45 --json
same "$(field fewest_ranks)" 4 "the fewest ranks"
python3 -c 'import json; j = json.load(open("out")); assert j["memory_bytes"] <= j["room_bytes"] == int(0.45 * 2**30), j' || fail "four ranks fit"
expect 4 "try 4 ranks" alone plan $many --gpu-memory 0.45 --ranks 3
expect 0 "\"n_ranks\": 6" alone plan $many --gpu-memory 0.45 --ranks 6 --json
same "$(field fewest_ranks)" 4 "the fewest ranks beside the asked ones"
# Two ranks a host have its memory together.
expect 4 "2 ranks together" alone plan $many --host-memory 0.45 --ranks 2 --ranks-per-host 2
expect 4 "up to 64 ranks none fits" alone plan $many --gpu-memory 0.01

# ---- what fits if second moments are spilled
expect 0 "a rank go to the host's memory" alone plan $eight --samples 128 --grid 8x1 --waves 1
for word in "9 ranks would fit:" "38.1 GiB a rank" "35.7 GiB of result; beside"; do
    grep -qF -e "$word" out || fail "a plan that spills to the hosts lacks \"$word\""
done
# 10 layers of 3 groups of 8192 and one of 28672 a rank, 4 ranks a host
expect 0 n_ranks alone plan $eight --samples 128 --grid 8x1 --waves 1 --host-memory 153 --json
python3 - out <<'END' || fail "bytes spilled to hosts"
import json, sys
j = json.load(open(sys.argv[1]))
assert all(p["spilled_bytes"] == 10 * 8 * (3 * 8192 * 8193 // 2 + 28672 * 28673 // 2) for p in j["ranks"]), j
assert j["spilled_to"] == "host memory" and j["disk_bytes"] == j["result_bytes"] + j["hidden_bytes"] and not j["fewest_spills"], j
END
expect 4 "152.51 GiB, don't fit in its own 152.00 GiB" alone plan $eight --samples 128 --grid 8x1 --waves 1 --host-memory 152
# One that needn't is taken before one that must, whatever its time; ranks before spilling, unless no number of them does.
expect 0 "as 1x8" alone plan $eight --gpu-memory 10 --profile "$PROFILE"
grep -q "^ *2x4 .*  spills" out || fail "a grid that spills: $(grep 2x4 out)"
expect 0 "3 ranks would fit if second moments are spilled" alone plan --synthetic "$LLAMA" --gpu-memory 9 --ranks-per-host 4
# --memory is what each rank may take, of whatever there is; the command says it too.
expect 0 "disk, in /scratch dir" alone plan --synthetic "$LLAMA" --host-memory 80 --ranks 8 --memory 3500M --scratch "/scratch dir"
for word in "a rank may take 3.4 GiB" "of second moments while it runs" "--memory 3500M --scratch '/scratch dir' --grid"; do
    grep -qF -e "$word" out || fail "a plan that spills to disk lacks \"$word\""
done
expect 4 "--memory allows 3.00 GiB: try 16 ranks" alone plan --synthetic "$LLAMA" --host-memory 80 --ranks 8 --memory 3
expect 4 "a host of 2.00 GiB" alone plan --synthetic "$LLAMA" --host-memory 2 --ranks 8 --memory 80G

# ---- experts: what is less travels, unless it doesn't fit
qwen="--synthetic $EXAMPLES/shapes/qwen3-30b-a3b.json --layers 1 --ranks 2 --grid 1x2 --seq-len 1000"
expect 0 "their weights travel to the tokens" alone plan $qwen --samples 40 --host-memory 64
expect 0 "tokens travel to them" alone plan $qwen --samples 32 --host-memory 64
expect 0 "memory_bytes" alone plan $qwen --samples 40 --host-memory 64 --json
same "$(field expert_traffic)" weights "what is less of 40 thousand tokens"
whole=$(field memory_bytes)
tight=$(python3 -c "print(($whole - 2**28) / 2**30)") # a quarter of a GiB less than weights at hand would take
expect 0 "tokens travel to them" alone plan $qwen --samples 40 --gpu-memory 0 --host-memory "$tight"
expect 0 "second moments of up to" alone plan $qwen --samples 40 --host-memory "$tight" --expert-traffic weights
expect 0 "tokens travel to them" alone plan $qwen --samples 40 --host-memory 64 --memory "$tight"
expect 4 needs alone plan $qwen --samples 40 --host-memory 0.5 --expert-traffic weights

# ---- calibrate and plan refuse the same, with the same figures
big="--synthetic $EXAMPLES/shapes/llama-3.1-405b.json --layers 1 --samples 800 --seq-len 8192"
expect 4 needs alone plan $big --ranks 1 --max-steps 6
sed -n 's/.*needs \([^)]*)\).*/\1/p' err >planned
[ -s planned ] || fail "the plan's figures: $(why)"
expect 4 needs alone calibrate $big --out never.glowq
sed -n 's/.*needs \([^)]*)\).*/\1/p' err >refused
same "$(cat planned)" "$(cat refused)" "what plan and calibrate refuse"
[ -e never.glowq ] && fail "calibrate left something behind"

# ---- the table
expect 0 "not estimated" alone plan --synthetic "$LLAMA" --gpu-memory 80 --grid 1x8
for word in "hidden states" "second moments" "together" "moments" "of result" "mpirun -n 8 glowq calibrate" "--grid 1x8"; do
    grep -qF -e "$word" out || fail "the table lacks \"$word\""
done
# 80 layers of 3 groups of 8192 and one of 28672, 8 bytes a number of the triangle: each rank keeps its rows and sends the others, on
# an average 7/8 of it; rank 0, whose rows are the shortest, most.
grep -q "^  moments  *300 GiB" out || fail "Sigma_x of Llama-2-70B on 8 ranks: $(grep '^  moments' out)"
expect 0 n_ranks alone plan --synthetic "$LLAMA" --gpu-memory 80 --grid 1x8 --json
python3 - out <<'END' || fail "Sigma_x sent by all of 8 ranks"
import json, sys
moments = [p["network"]["stages"]["moments"] for p in json.load(open(sys.argv[1]))["ranks"]]
whole = 80 * 8 * (3 * 8192 * 8193 // 2 + 28672 * 28673 // 2)
assert sum(m["sent"] for m in moments) == 7 * whole, moments
assert all(abs(m["received"] - whole * 7 / 8) <= 80 for m in moments), moments
END

# ---- serving: as many tokens as the memory has room for, and no more; the model's own figures
serve="--synthetic $LLAMA --serve --gpu-memory 24"
expect 0 "4 bits, rank 64" alone plan $serve --max-ranks 8
for word in "as stored" "KV tokens" "doesn't fit" "mpirun -n 2 glowq serve" "--model OUT.glowq"; do
    grep -qF -e "$word" out || fail "the table of serving lacks \"$word\""
done
expect 0 formats alone plan $serve --max-ranks 8 --max-length 8192 --json
python3 - out <<'END' || fail "plans of serving"
import json, sys
j = json.load(open(sys.argv[1]))
room = j["room_bytes"] * j["memory_fraction"]
assert room == 0.8 * 24 * 2**30 and j["max_length"] == 8192
for f in j["formats"]:
    kv_heads, head_dim, layers, act = 8, 128, 80, 2
    for p in f["plans"]:
        heads = -(-kv_heads // p["n_ranks"])
        block = 2 * layers * heads * head_dim * act * 16
        assert p["memory"]["KV cache"] == p["kv_tokens"] // 16 * block, p
        assert sum(p["memory"].values()) == p["memory_bytes"]
        full = p["kv_tokens"] == 64 * 8192
        assert p["fits"] == (p["kv_tokens"] >= 8192), p
        # No room is left for another block, unless all that is wanted fits; some rank needs more beside the cache than this one.
        if p["fits"]:
            assert p["memory_bytes"] <= room and (full or p["memory_bytes"] + block > room or p["n_ranks"] in (3, 5, 6, 7)), p
        assert abs(p["requests"] - p["kv_tokens"] / 8192) < 1e-9
    assert f["fewest_ranks"] == min((p["n_ranks"] for p in f["plans"] if p["fits"]), default=0)
dense, low = j["formats"]
assert dense["bits"] == 0 and low["bits"] == 4 and low["fewest_ranks"] == 3 < dense["fewest_ranks"] == 8, (low, dense)
END
# What docs/serving.md shows is what that command prints.
sed -n '/^\$ glowq plan --serve/,/^```/{/^```/d;p}' "$GLOWQ_SOURCE_DIR/docs/serving.md" >shown
shown=$(sed -n '1s/^\$ glowq //p' shown)
[ -n "$shown" ] || fail "docs/serving.md shows no plan"
(cd "$GLOWQ_SOURCE_DIR" && env -u GLOWQ_THREADS "$GLOWQ" $shown) >out 2>err || fail "the plan of docs/serving.md: $(why)"
sed 1d shown | diff - out || fail "docs/serving.md shows another plan than is printed"
expect 4 "each of 1 ranks needs" alone plan $serve --ranks 1
sed -n 's/.*needs [^(]*(\(.*\), KV cache.*/\1/p' err >planned
expect 4 "needs" alone bench --synthetic "$LLAMA" --bits 4 --rank 64
sed -n 's/.*needs [^(]*(\(.*\), KV cache.*/\1/p' err >refused
same "$(cat planned)" "$(cat refused)" "the weights of a model that is planned and of one that is run"
expect 4 "room for" alone plan $serve --ranks 2 --max-length 1000000
expect 0 "KV cache" alone plan --model "$EXAMPLES/dense" --serve --host-memory 1 --ranks-per-host 2 --ranks 2
expect 2 "--max-length goes with --serve" alone plan --synthetic "$LLAMA" --max-length 100
expect 2 "--grid goes without --serve" alone plan --synthetic "$LLAMA" --serve --grid 2x2

# ---- solving from statistics
expect 2 "--samples goes without --stats" alone plan --model x --stats y --samples 5
expect 1 "no-such-folder" alone plan --model "$EXAMPLES/dense" --stats no-such-folder --host-memory 1
expect 0 '"hidden_bytes"' alone plan --model "$EXAMPLES/dense" --seq-len 512 --host-memory 1 --keep-stats --json
python3 -c 'import json; j = json.load(open("out")); assert j["disk_bytes"] == j["result_bytes"] + j["hidden_bytes"] + j["stats_bytes"] and "--keep-stats" in j["command"], j' ||
    fail "what is on the disk"

# ---- profiles
expect 0 "wrote machine.json" ranks 2 plan --measure machine.json
python3 -c 'import json; r = json.load(open("machine.json"))["rates"]; assert len(r) == 11 and all(v > 0 for v in r.values()), r' ||
    fail "rates of two ranks"
[ -z "$(ls -A | grep glowq-profile)" ] || fail "a file is left of the disk's timing"
expect 0 "at the rates of" alone plan --synthetic "$LLAMA" --gpu-memory 80 --ranks 8 --profile machine.json
expect 0 "wrote alone.json" alone plan --measure alone.json
grep -q '"network_bytes": null' alone.json || fail "one rank knows a network"
expect 0 "knows no network" alone plan --synthetic "$LLAMA" --gpu-memory 80 --ranks 8 --profile alone.json
expect 0 "at the rates of" alone plan --synthetic "$LLAMA" --gpu-memory 80 --ranks 8 --profile alone.json --network 12.5
sed 's/"moment_flops": .*,/"moment_flops": -1,/' machine.json >bad.json
expect 3 "bad.json: \"moment_flops\" is -1" alone plan --synthetic "$LLAMA" --profile bad.json --gpu-memory 80
sed '/gemm_f64/d' machine.json >bad.json
expect 3 "gemm_f64_flops" alone plan --synthetic "$LLAMA" --profile bad.json --gpu-memory 80
expect 1 "no-such-profile" alone plan --synthetic "$LLAMA" --profile no-such-profile.json

# ---- the batch file: resources, what calibrate is told, and the rest of launch/slurm/calibrate.sbatch as it is
expect 0 "of result" alone plan --synthetic "$LLAMA" --gpu-memory 80 --grid 2x6 --ranks-per-host 8 --bits 3 --out "a b.glowq" \
    --profile machine.json --sbatch job.sbatch
sh -n job.sbatch || fail "job.sbatch is no shell script"
for word in "#SBATCH --nodes=2 --ntasks=12 --ntasks-per-node=8 --gpus-per-node=8" "#SBATCH --time=" "--bits 3" "OUT='a b.glowq'"; do
    grep -qF -e "$word" job.sbatch || fail "the batch file lacks \"$word\""
done
sed -n '/^set -eu/,$p' "$GLOWQ_SOURCE_DIR/launch/slurm/calibrate.sbatch" >body
sed -n '/^set -eu/,$p' job.sbatch | cmp -s - body || fail "the batch file's end isn't calibrate.sbatch's"
printf '#!/bin/sh\nprintf "%%s|" "$@" >told\n' >told.sh && chmod +x told.sh # the program's place: what would it be told?
GLOWQ=./told.sh LAUNCHER=env sh job.sbatch >/dev/null 2>&1
same "$(cat told)" "calibrate|--out|a b.glowq|--synthetic|$LLAMA|--bits|3|--grid|2x6|--threads|$GLOWQ_THREADS|" "what the batch file starts"
expect 0 "of result" alone plan --model "$EXAMPLES/dense" --seq-len 512 --host-memory 2 --ranks 2 --sbatch cpu.sbatch
grep -q -e "^.*set --.* --grid 2x1$" cpu.sbatch || fail "no grid in the batch file"
# A text that the plan wasn't told is the job's to say, and is then the only one.
printf '#!/bin/sh\necho "$@"\n' >words.sh && chmod +x words.sh
TEXT="" GLOWQ=./words.sh LAUNCHER=env sh cpu.sbatch >out 2>err && fail "a batch file without a text runs"
grep -q "TEXT: calibration text" err || fail "what the batch file lacks isn't said: $(why)"
TEXT=a.txt GLOWQ=./words.sh LAUNCHER=env sh cpu.sbatch >out 2>err
same "$(grep -o -e "--text [^ ]*" out)" "--text a.txt" "text of the batch file"
expect 0 "of result" alone plan --model "$EXAMPLES/dense" --quiet --sbatch quiet.sbatch
grep -q -e "--quiet" quiet.sbatch out && fail "a plan that is quiet makes the job so"
expect 0 "of result" alone plan --synthetic "$LLAMA" --host-memory 80 --ranks 8 --memory 3500M --scratch /scratch --sbatch spill.sbatch
grep -q -e "^.*set --.* --memory 3500M --scratch /scratch " spill.sbatch || fail "no memory in the batch file"
grep -qF -e "--nodes=2 --ntasks=2 --ntasks-per-node=1 --mem=" cpu.sbatch || fail "memory of a host: $(grep SBATCH cpu.sbatch)"

# ---- usage
expect 2 "missing --model" alone plan
expect 2 "give one of them" alone plan --measure a.json --profile b.json
expect 2 "--memory \"5Q\": give a size like 5G" alone plan --model x --memory 5Q
expect 2 "--memory goes without --serve" alone plan --synthetic "$LLAMA" --serve --memory 5G
expect 2 "goes without --ranks" alone plan --model x --ranks 2 --max-ranks 4
expect 2 "--seq-len 9000" alone plan --synthetic "$LLAMA" --seq-len 9000
expect 1 "no-such-folder" alone plan --model no-such-folder
finish
