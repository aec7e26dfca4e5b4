#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves a model on N ranks of this machine (or of a Slurm job) so that the loss of a rank is told to clients:
#   launch/serve.sh N --model DIR [options of glowq serve]
# Plain mpirun kills rank 0 a second after any rank dies. With --enable-recovery it doesn't, and rank 0 goes on to answer 503 for
# --linger seconds; mpirun then returns 0 whatever its ranks returned, so the exit code comes through a file: 6, a rank was lost.
# TERM and INT drain: mpirun hands USR1 on to its ranks, where it answers TERM by killing them.
set -eu
N=${1:-}
usage="usage: $0 N --model DIR [option...], with the options of glowq serve"
case $N in
-h | --help) echo "$usage"; exit 0 ;;
"" | 0 | *[!0-9]*) echo "$usage" >&2; exit 2 ;;
esac
shift
. "$(dirname "$0")/mpi_env.sh"
for at in "$(dirname "$0")/../build/glowq" "$(dirname "$0")/../../../bin/glowq" glowq; do
    [ ! -x "$at" ] || break # of this source tree, of this installation, or on PATH
done
GLOWQ="${GLOWQ:-$at}"                              # the program
MPIRUN="${MPIRUN:-mpirun}"                         # and its launcher
GLOWQ_EXIT_FILE=$(mktemp)
export GLOWQ_EXIT_FILE
trap 'rm -f "$GLOWQ_EXIT_FILE"' EXIT

echo "+ $MPIRUN --enable-recovery -x GLOWQ_EXIT_FILE -n $N $GLOWQ serve $*" >&2
"$MPIRUN" --enable-recovery -x GLOWQ_EXIT_FILE -n "$N" "$GLOWQ" serve "$@" &
job=$!
trap 'kill -USR1 $job 2>/dev/null || true' TERM INT
late=0
while kill -0 $job 2>/dev/null; do
    sleep 0.2 & wait $! || true # a signal ends wait at once, but not sleep
    # rank 0 has said its last word; a rank that is stopped can't hear of it
    [ ! -s "$GLOWQ_EXIT_FILE" ] || late=$((late + 1))
    [ $late != 50 ] || kill -TERM $job
    [ $late != 75 ] || kill -KILL $job
done
code=0
wait $job || code=$?
said=$(cat "$GLOWQ_EXIT_FILE")
[ -z "$said" ] || exit "$said"
[ "$code" != 0 ] || code=6 # rank 0 itself was lost: it wrote nothing
exit "$code"
