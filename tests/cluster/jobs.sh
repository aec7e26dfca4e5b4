# SPDX-License-Identifier: Apache-2.0
# The scripts of launch/slurm on a real Slurm: a calibration on two nodes that is given notice before its time limit, stops, is
# queued again, resumes and ends with the bytes of a run that was never disturbed; under srun and under mpirun; evaluation, a sweep,
# and who sees which GPU. Its job.log is the one shown in docs/cluster.md.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
. "$GLOWQ_SOURCE_DIR/tests/cluster/slurm.sh"
reason=$(slurm_missing)
[ -z "$reason" ] || skip "$reason"
SCRIPTS=$GLOWQ_SOURCE_DIR/launch/slurm
MODEL=$GLOWQ_SOURCE_DIR/examples/dense TEXT=$GLOWQ_SOURCE_DIR/examples/texts/calibration.txt
export GLOWQ MODEL TEXT SCRIPTS
settings="--text $TEXT --rank 32 --samples 480 --seq-len 256 --max-steps 20 --stop 0" # the text twice: long enough for a notice

folder=$(mktemp -d) # socket paths are short
trap 'slurm_down "$folder"; rm -rf "$folder"' EXIT
trap 'exit 1' TERM INT
slurm_up "$folder" 2 || skip "Slurm doesn't start here"
up=$(date +%s)

over() { # waits until job $1 is over; $n_queued: how often it was queued again
    n_queued=0
    for i in $(seq 500); do
        state=$(scontrol show job "$1" 2>/dev/null)
        restarts=$(echo "$state" | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p' | sort -n | tail -n 1)
        n_queued=${restarts:-$n_queued}
        [ "$n_queued" = 0 ] || scontrol update jobid="$1" TimeLimit=60 2>/dev/null # one notice is enough
        [ -n "$(squeue -h -j "$1" 2>/dev/null)" ] || return 0
        sleep 0.2
    done
    fail "job $1 isn't over after 100 s: $(squeue -h -j "$1" -o '%t %r')"
    scancel "$1"
}
exit_code() { scontrol show job "$1" | sed -n 's/.* ExitCode=\([0-9]*\):.*/\1/p'; }

alone calibrate --model "$MODEL" --text "$TEXT" --out whole.glowq $settings || fail "calibrate: $(why)"

# The controller looks at time limits every 30 s from its start. A minute's limit with notice 50 s before: due after 10 s at most,
# so a job that starts 8 s before such a look is noticed by it.
while [ $((($(date +%s) - up) % 30)) != 22 ]; do sleep 0.1; done
job=$(OUT=$PWD/job.glowq sbatch --parsable -N 2 --ntasks-per-node=1 --time=1 --signal=B:USR1@50 -o job.log \
    "$SCRIPTS/calibrate.sbatch" $settings) || fail "sbatch"
over "$job"
[ "$n_queued" -ge 1 ] || fail "the job was not queued again"
same "$(exit_code "$job")" 0 "exit code of the job"
grep -q "stopped by SIGUSR1 after [1-5] of 6 layers" job.log || fail "no stop in the log: $(cat job.log)"
grep -q "going on where an earlier run stopped" job.log || fail "no resume in the log: $(cat job.log)"
same "$(bytes_of job.glowq)" "$(bytes_of whole.glowq)" "bytes of the job and of a run that was never disturbed"

# The same under mpirun, shorter, with the notice by hand.
job=$(OUT=$PWD/mpirun.glowq LAUNCHER="mpirun -n 2" sbatch --parsable -n 2 -o mpirun.log "$SCRIPTS/calibrate.sbatch" --rank 16 \
    --samples 128 --seq-len 128) || fail "sbatch"
for i in $(seq 300); do
    [ -e mpirun.glowq/layers/0000.h5 ] && break
    sleep 0.1
done
scancel --batch --signal=USR1 "$job"
over "$job"
same "$n_queued" 1 "times that the job under mpirun was queued again"
same "$(exit_code "$job")" 0 "exit code of the job under mpirun"
grep -q "going on where an earlier run stopped" mpirun.log || fail "no resume under mpirun: $(cat mpirun.log)"
"$GLOWQ" verify mpirun.glowq >/dev/null || fail "mpirun.glowq isn't sound"

# A sweep of two; an evaluation.
export OUT=$PWD/sweep BITS="4 3" RANKS=8 EVAL_TEXT=$GOLDEN/text.txt
job=$(MODEL=$TINY TEXT=$GOLDEN/text.txt sbatch --parsable --array=0-1 -n 2 -o "sweep-%a.log" "$SCRIPTS/sweep.sbatch" \
    --group-size 64 --samples 12 --seq-len 64) || fail "sbatch of the sweep"
over "$job"
for name in w4-r8 w3-r8; do
    [ -s "sweep/$name.glowq/manifest.json" ] || fail "no sweep/$name.glowq: $(tail -n 3 sweep-*.log)"
    [ -n "$(field perplexity "sweep/$name.glowq.eval.json")" ] || fail "$name wasn't evaluated: $(tail -n 3 sweep-*.log)"
done
# The same results from statistics, without a forward pass.
alone calibrate --model "$TINY" --text "$GOLDEN/text.txt" --out kept.glowq --group-size 64 --samples 12 --seq-len 64 --rank 4 \
    --keep-stats || fail "calibrate --keep-stats: $(why)"
job=$(MODEL=$TINY STATS=$PWD/kept.glowq OUT=$PWD/solved EVAL_TEXT="" sbatch --parsable --array=0-1 -n 2 -o "solve-%a.log" \
    "$SCRIPTS/sweep.sbatch" --group-size 64) || fail "sbatch of the sweep from statistics"
over "$job"
for name in w4-r8 w3-r8; do
    same "$(bytes_of "solved/$name.glowq")" "$(bytes_of "sweep/$name.glowq")" "bytes of $name from statistics"
done
job=$(MODEL=$PWD/sweep/w3-r8.glowq TEXT=$GOLDEN/text.txt sbatch --parsable -n 2 -o eval.log "$SCRIPTS/eval.sbatch")
over "$job"
same "$(sed -n '/^{/,$p' eval.log | field perplexity /dev/stdin)" "$(field perplexity sweep/w3-r8.glowq.eval.json)" \
    "perplexity by eval.sbatch and after the sweep"

# Asked for a GPU a task or for the node's, ranks see all that the job has on their node.
printf '#!/bin/sh\necho "rank $SLURM_PROCID sees $CUDA_VISIBLE_DEVICES"\n' >show
chmod +x show
for gpus in --gpus-per-task=1 --gpus-per-node=2; do
    job=$(GLOWQ=$PWD/show MODEL=x sbatch --parsable -N 1 -n 2 "$gpus" -o gpus.log "$SCRIPTS/eval.sbatch")
    over "$job"
    same "$(grep -c "rank [01] sees 0,1$" gpus.log)" 2 "ranks that see both GPUs with $gpus ($(tail -n 2 gpus.log))"
done
finish
