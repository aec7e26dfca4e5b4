# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts of this folder, which test the program as a user meets it: arguments, exit codes, what is printed,
# what is left on disk. CTest sets GLOWQ_BINARY, GLOWQ_SOURCE_DIR and GLOWQ_MPIEXEC. A script works in a folder of its own,
# goes on after a failure, and ends with `finish`.
set -u
GLOWQ=$GLOWQ_BINARY
[ -x "$GLOWQ" ] || { echo "FAIL: $GLOWQ isn't there"; exit 1; }
GOLDEN=$GLOWQ_SOURCE_DIR/tests/golden
TINY=$GOLDEN/families/tp_cut                   # random weights, 2 layers, splits that cut quantization groups, a tokenizer
DATA=${GLOWQ_DATA:-}                           # published models and texts; not part of the project
export GLOWQ_THREADS="${GLOWQ_THREADS:-1}"     # many programs at a time on few cores
LIMIT_S=${LIMIT_S:-120}                        # a run that takes longer hangs
failures=0
work=cli_$(basename "$0" .sh)$(printf "_%s" "$@" | tr -c "a-z0-9\n" _) # cases of one script run side by side
rm -rf "$work" && mkdir "$work" && cd "$work" || exit 1

# The first error in a file of talk (default err), else its last line.
why() { grep -a -m 1 "glowq.*: " "${1:-err}" || tail -n 1 "${1:-err}"; }
fail() { echo "FAIL: $*"; failures=$((failures + 1)); }
skip() { echo "skipped: $*"; exit 77; }
need_data() { [ -n "$DATA" ] || skip "GLOWQ_DATA (a folder of published models) isn't set"; }
need() { command -v "$1" >/dev/null || skip "$1 is not installed"; }
finish() {
    echo "$(basename "$0"): $failures failures"
    [ "$failures" = 0 ]
    exit $?
}

# On one process, or on N ranks. Output in files out and err.
alone() { timeout -k 5 "$LIMIT_S" "$GLOWQ" "$@" >out 2>err; }
ranks() { n=$1; shift; timeout -k 5 "$LIMIT_S" "$GLOWQ_MPIEXEC" -n "$n" "$GLOWQ" "$@" >out 2>err; }

# expect CODE WORD COMMAND...: the exit code, and a word in what is printed. An error also has to leave stdout empty.
expect() {
    code=$1 word=$2; shift 2
    "$@"
    got=$?
    [ "$got" = "$code" ] || fail "exit $got instead of $code: $* ($(why))"
    grep -qiF -e "$word" out err || fail "no \"$word\" in the output of: $* ($(why))"
    if [ "$code" != 0 ] && [ -s out ]; then fail "data on stdout in spite of an error: $*"; fi
}
same() { [ "$1" = "$2" ] || fail "$3: \"$1\" and \"$2\" differ"; }

# The number or string of a top-level member of the JSON object in file $2 (default out), as printed.
field() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "${2:-out}"; }
# One hash of everything in a .glowq folder that has to be the same for any number of ranks.
bytes_of() { (cd "$1" && sha256sum layers/*.h5 head.h5 model.h5 manifest.json | sha256sum | cut -d' ' -f1); }
# That and the hash of its statistics.
all_bytes() { echo "$(bytes_of "$1") $(cd "$1/stats" && sha256sum *.h5 | sha256sum)"; }

# What runs the calibrations that follow, on N ranks.
LAUNCH=""
launch_on() { if [ "$1" = 1 ]; then LAUNCH=""; else LAUNCH="$GLOWQ_MPIEXEC -n $1"; fi; }
# Calibrates the tiny model with the settings that the tests compare.
calibrate_tiny() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --model "$TINY" --text "$GOLDEN/text.txt" --out "$out_dir" --rank 8 \
        --group-size 64 --samples 12 --seq-len 64 --json "$@" >out 2>err
}
# A trained model of six layers, which take long enough to be disturbed at.
DENSE=$GLOWQ_SOURCE_DIR/examples/dense DENSE_TEXT=$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt
calibrate_dense() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --model "$DENSE" --text "$DENSE_TEXT" --out "$out_dir" --rank 16 \
        --samples 128 --seq-len 128 "$@" >out 2>err
}
# same_on "1 2 3" NAME COMMAND [ARGUMENT...]: COMMAND makes the same bytes on each number of ranks, in NAME1.glowq, NAME2.glowq ..,
# its first argument. The bytes: $same_bytes.
same_on() {
    counts=$1 name=$2 command=$3 same_bytes=""; shift 3
    for n in $counts; do
        launch_on "$n"
        "$command" "$name$n.glowq" "$@" || fail "$command $* on $n ranks: $(why)"
        now=$(bytes_of "$name$n.glowq")
        same "$now" "${same_bytes:=$now}" "bytes of $command $* on $n ranks and on ${counts%% *}"
    done
    LAUNCH=""
}

# Of a calibration that is under way: layers published; its ranks, or with PROGRAM the processes whose words begin with that one (other
# cases run beside this one: theirs are in other folders), false if there are none; and waiting until so many layers are there or $job has
# ended.
n_layers() { find "$1/layers" -name '0*.h5' 2>/dev/null | wc -l; }
processes_of() {
    pgrep -f "^${2:-$GLOWQ calibrate} .*--out $1 " | while read -r pid; do
        [ "$(readlink "/proc/$pid/cwd")" != "$(pwd -P)" ] || echo "$pid"
    done | grep .
}
wait_for_layers() { # OUT N
    waited=0
    while [ "$(n_layers "$1")" -lt "$2" ] && [ "$waited" -lt 3000 ] && kill -0 "$job" 2>/dev/null; do
        sleep 0.02
        waited=$((waited + 1))
    done
}
