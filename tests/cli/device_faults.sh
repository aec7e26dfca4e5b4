# SPDX-License-Identifier: Apache-2.0
# device_faults.sh [sweep]: a GPU fails in the middle of a run, on one rank or on all of them, at an allocation, a launch, a copy
# or a wait (GLOWQ_SIM_FAIL, kernels/cuda/sim/sim.h). The run ends soon and with a documented code; every rank says at most one
# thing, and that names GPU and rank; no process stays, no file but finished ones; a calibration then resumes to the bytes of a
# run that was never disturbed. Without "sweep" some points of each command; with it many, for half an hour and more.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep
LIMIT_S=${LIMIT_S:-60} # of a run that nothing disturbs
ENDS_S=20              # of one whose GPU fails
TEXT=$GOLDEN/text.txt
mkdir tmp
TMPDIR=$PWD/tmp # what programs leave there is seen
export TMPDIR
n_runs=0 n_reached=0

# The options of a command, small.
arguments() { # COMMAND OUT
    case $1 in
    calibrate) echo "--text $TEXT --rank 8 --group-size 64 --samples 12 --seq-len 64 --out $2" ;;
    eval) echo "--text $TEXT --ctx 64 --max-tokens 128" ;;
    generate) echo "--prompt hello --max-tokens 6" ;;
    bench) echo "--prompt 16 --generate 3 --batch 1 --repeat 1" ;;
    esac
}
run() { # LIMIT RANKS COMMAND OUT
    launch=""
    [ "$2" = 1 ] || launch="$GLOWQ_MPIEXEC -n $2"
    # shellcheck disable=SC2046
    timeout -k 5 "$1" $launch "$GLOWQ" "$3" --device cuda:sim --model "$TINY" $(arguments "$3" "$4") </dev/null >out 2>err
}
# The program of this folder's runs: its session's temporary folder is nobody else's.
processes() { pgrep -f "^$GLOWQ (calibrate|eval|generate|bench) --device cuda:sim" | while read -r pid; do
    { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -qxF "TMPDIR=$TMPDIR" && echo "$pid"
done; }

# fault RANKS COMMAND WHAT:N[:RANK]: false if the run did not reach it
fault() {
    n=$1 command=$2 spec=$3
    case="$command, $n ranks, $spec"
    rm -rf cut.glowq
    n_runs=$((n_runs + 1))
    begun=$(date +%s)
    GLOWQ_SIM_FAIL=$spec run "$((2 * ENDS_S))" "$n" "$command" cut.glowq
    got=$?
    took=$(($(date +%s) - begun))
    if [ "$got" = 0 ]; then
        ! grep -aq "glowq: error" err || fail "$case: an error and exit 0 ($(why))"
        return 1
    fi
    n_reached=$((n_reached + 1))
    case $got in
    1 | 4 | 6) ;;
    *) fail "$case: exit $got ($(why))" ;;
    esac
    [ "$took" -le "$ENDS_S" ] || fail "$case: ended after $took s"
    told=$(grep -ac "glowq: error" err)
    case $spec in
    *:*:*) most=1 ;;
    *) most=$n ;;
    esac
    { [ "$told" -ge 1 ] && [ "$told" -le "$most" ]; } || fail "$case: $told errors are told: $(cat err)"
    grep -a "glowq: error" err | grep -q "GPU 0" || fail "$case: no GPU is named ($(why))"
    if [ "$n" -gt 1 ]; then
        case $spec in
        *:*:*) grep -a "glowq: error" err | grep -q "rank ${spec##*:}" || fail "$case: rank ${spec##*:} isn't named ($(why))" ;;
        *) grep -a "glowq: error" err | grep -q "rank [0-9]" || fail "$case: no rank is named ($(why))" ;;
        esac
    fi
    case $spec in
    alloc:*) grep -aq "needs .* has .* free of .*: try " err || fail "$case: no figures ($(why))" ;;
    esac
    { [ "$command" = generate ] || [ ! -s out ]; } || fail "$case: data on stdout: $(cat out)"
    waited=0
    while [ -n "$(processes)" ] && [ "$waited" -lt 20 ]; do # those that mpiexec has just told to end
        sleep 0.1
        waited=$((waited + 1))
    done
    [ -z "$(processes)" ] || fail "$case: processes stay: $(processes)"
    [ -z "$(find tmp -type f)" ] || fail "$case: left in TMPDIR: $(find tmp -type f)"
    [ "$command" = calibrate ] && resume "$n" "$case"
    return 0
}

# What a disturbed calibration left, and the same command once more.
resume() { # RANKS CASE
    [ ! -e cut.glowq/manifest.json ] || fail "$2: a manifest was written"
    left=$(find cut.glowq -name '.*.tmp' 2>/dev/null)
    [ "$1" -gt 1 ] || [ -z "$left" ] || fail "$2: $left stays" # ranks that are ended from outside can't remove theirs
    run "$LIMIT_S" "$1" calibrate cut.glowq || fail "$2: resuming: $(why)"
    same "$(bytes_of cut.glowq)" "$(bytes_of "whole$1.glowq")" "bytes after $2"
    left=$(find cut.glowq -name '.*' -type f)
    [ -z "$left" ] || fail "$2: after resuming $left stays"
}

for n in 1 2 3; do
    run "$LIMIT_S" "$n" calibrate "whole$n.glowq" || { fail "calibrate on $n ranks: $(why)"; finish; }
done

# More than the device has: refused with the figures before anything is loaded, on one rank and on ranks that share it.
for n in 1 2; do
    launch=""
    [ "$n" = 1 ] || launch="$GLOWQ_MPIEXEC -n $n"
    for command in eval calibrate generate; do
        # shellcheck disable=SC2046
        GLOWQ_SIM_MEMORY=8000000 timeout -k 5 "$ENDS_S" $launch "$GLOWQ" "$command" --device cuda:sim \
            --model "$GLOWQ_SOURCE_DIR/examples/dense" $(arguments "$command" small.glowq) </dev/null >out 2>err
        same "$?" 4 "exit of $command on $n ranks with 8 MB each"
        grep -q "needs .* MiB (.*activations .*GPU 0 has .* free: try " err || fail "$command, $n ranks, 8 MB: $(why)"
        [ ! -s out ] || fail "$command, $n ranks, 8 MB: data on stdout: $(cat out)"
        [ ! -e small.glowq ] || fail "$command, $n ranks, 8 MB: small.glowq was made"
    done
done

# The check at opening that fails says how to go without the kernels it checks; told so, it runs none of them.
GLOWQ_SIM_FAIL=launch:1 run "$ENDS_S" 1 eval none
grep -q "GLOWQ_DISABLE=mma goes without" err || fail "the check at opening fails: $(cat err)"
GLOWQ_DISABLE=mma GLOWQ_SIM_FAIL=launch:1 run "$ENDS_S" 1 eval none
same "$?" 1 "exit without the fast kernels"
! grep -q "GLOWQ_DISABLE=mma goes without" err || fail "a check of kernels that are disabled: $(cat err)"

if [ "${1:-}" = sweep ]; then
    for command in ${COMMANDS:-eval generate calibrate bench}; do
        for n in ${RANKS:-1 2 3}; do
            for rank in "" :0 ":$((n - 1))"; do
                { [ "$n" = 1 ] && [ -n "$rank" ]; } && continue
                for what in alloc launch put get sync; do
                    for at in ${POINTS:-1 2 5 20 50 100 200 500 1000 2000 5000 10000}; do
                        fault "$n" "$command" "$what:$at$rank" || break
                    done
                done
            done
        done
    done
else
    # Ranks, command, what, calibrate's grid; all are reached. Ranks that can't be told of a failure are ended after some seconds each.
    while read -r n command spec grid; do
        export GLOWQ_GRID="$grid" # "": as without
        fault "$n" "$command" "$spec" || fail "$command, $n ranks: $spec isn't reached"
    done <<'END'
1 eval alloc:1
1 eval alloc:100
1 eval launch:1
1 eval launch:150
1 eval put:20
1 eval get:4
1 generate launch:120
1 generate get:4
1 calibrate alloc:200
1 calibrate launch:1000
1 calibrate get:60
1 bench launch:300
2 eval launch:100:1
2 generate put:30:0
2 calibrate alloc:300
2 calibrate launch:1000:1
2 calibrate launch:700:1 2x1
2 calibrate alloc:150:1 2x1
2 calibrate get:40:0 2x1
2 calibrate put:30 2x1
3 calibrate launch:400:1
3 calibrate get:100:2
3 bench alloc:60:1
END
fi
echo "$n_runs runs, $n_reached with a failure"
finish
