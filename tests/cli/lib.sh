# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts of this folder, which test the program as a user meets it: arguments, exit codes, what is printed,
# what is left on disk. CTest sets GLOWQ_BINARY, GLOWQ_SOURCE_DIR and GLOWQ_MPIEXEC. A script works in a folder of its own,
# goes on after a failure, and ends with `finish`.
set -u
GLOWQ=$GLOWQ_BINARY
[ -x "$GLOWQ" ] || { echo "FAIL: $GLOWQ isn't there"; exit 1; }
GOLDEN=$GLOWQ_SOURCE_DIR/tests/golden
TINY=$GOLDEN/families/tp_cut                   # random weights, 2 layers, splits that cut quantization groups, a tokenizer
DATA=$GLOWQ_SOURCE_DIR/../shared/data          # published models and texts; not part of the project
export GLOWQ_THREADS="${GLOWQ_THREADS:-1}"     # many programs at a time on few cores
LIMIT_S=${LIMIT_S:-120}                        # a run that takes longer hangs
failures=0
work=cli_$(basename "$0" .sh)$(printf "_%s" "$@" | tr -c "a-z0-9\n" _) # cases of one script run side by side
rm -rf "$work" && mkdir "$work" && cd "$work" || exit 1

# The first error in a file of talk (default err), else its last line.
why() { grep -a -m 1 "glowq.*: " "${1:-err}" || tail -n 1 "${1:-err}"; }
fail() { echo "FAIL: $*"; failures=$((failures + 1)); }
skip() { echo "skipped: $*"; exit 77; }
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
# Calibrates the tiny model with the settings that the tests compare.
calibrate_tiny() { # OUT, more options
    out_dir=$1; shift
    timeout -k 5 "$LIMIT_S" $LAUNCH "$GLOWQ" calibrate --model "$TINY" --text "$GOLDEN/text.txt" --out "$out_dir" --rank 8 \
        --group-size 64 --samples 12 --seq-len 64 --json "$@" >out 2>err
}
LAUNCH="" # calibrate_tiny: what runs the program, e.g. "$GLOWQ_MPIEXEC -n 2"
