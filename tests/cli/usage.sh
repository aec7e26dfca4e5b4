# SPDX-License-Identifier: Apache-2.0
# Help, versions, bad usage, and where an option's value comes from.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
commands="plan calibrate solve status select eval generate bench serve bench-serve tokenize inspect verify doctor"

expect 0 "Usage: glowq" alone --help
for c in $commands; do
    grep -q "^  $c " out || fail "the overview doesn't list $c"
done
for c in $commands; do
    expect 0 "Usage: glowq $c" alone "$c" --help
    [ -s err ] && fail "$c --help talks on stderr"
    "$GLOWQ" help "$c" | cmp -s - out || fail "glowq help $c isn't glowq $c --help"
    for word in "Examples:" "--json" "--config" "--quiet"; do
        grep -qF -e "$word" out || fail "$c --help doesn't show $word"
    done
    [ "$(awk 'length > 80' out | wc -l)" = 0 ] || fail "$c --help has lines wider than a terminal"
    grep -q " $" out && fail "$c --help has spaces at a line's end"
    # to be copied: a line goes on only behind a backslash
    awk '/^Examples:/ { on = 1; next } /^$/ { on = 0 } on && (goes_on ? !/^    / : !/^  [^ ]/) { bad = 1 }
        { goes_on = /\\$/ } END { exit bad }' out || fail "$c --help has examples that are broken into lines"
    grep -q "^  glowq $c\|^  mpirun.* glowq $c" out || fail "$c --help has no example"
done
for flag in --model --text --out --rank --bits --group-size --samples --seq-len --solver --damp --alpha --factor-dtype \
    --seed --threads --device --overwrite; do
    alone calibrate --help
    grep -qF -e "$flag" out || fail "calibrate --help doesn't show $flag"
done

# What a command doesn't heed it doesn't offer: serve watches its ranks itself. A file for all commands may set it for the others.
alone serve --help
grep -q -e "--watchdog" out && fail "serve --help shows --watchdog"
expect 2 "unknown option --watchdog" alone serve --model x --watchdog 3
echo "watchdog = 3" >all.conf
expect 0 "drain-timeout" alone serve --config all.conf --print-config
grep -q "watchdog" out && fail "serve --print-config shows a watchdog"
expect 0 "watchdog           = 3" alone eval --config all.conf --print-config
echo "serve { watchdog = 3 }" >own.conf
expect 2 "no such option 'watchdog'" alone serve --config own.conf --print-config

expect 0 "commit" alone --version
for library in compiler mpi hdf5 blas pcre2 utf8proc jansson libcrypto xxhash confuse libc; do
    grep -q "^$library  *[^ ]" out || fail "--version doesn't show $library"
done

# Bad usage: exit code 2, the option, its value, what is valid; nothing on stdout.
alone; same $? 2 "exit code without arguments"
expect 2 "did you mean eval?" alone evla
expect 2 "unknown subcommand" alone frobnicate
expect 2 "did you mean eval?" alone help evla
expect 0 "Usage: glowq SUBCOMMAND" alone help
expect 2 "missing --model DIR" alone calibrate
expect 2 "missing --text FILE" alone eval --model x
expect 2 "missing --text FILE" alone calibrate --model x --out y
expect 2 "missing argument PATH" alone inspect
expect 2 "found a second: \"b\"" alone inspect a b
expect 2 "unexpected argument \"stray\"" alone eval --model x --text y stray
expect 2 "did you mean --samples?" alone calibrate --sampels 3
expect 2 "unknown option --zzzzzz" alone calibrate --zzzzzz
expect 2 "-Z: unknown option" alone calibrate -Z
expect 2 "--rank needs a value" alone calibrate --rank
expect 2 "--json takes no value" alone calibrate --json=3
expect 2 "--bits 5: must be 2, 3, 4 or 8" alone calibrate --bits 5
expect 2 "--rank -1: must be a whole number from 0 to 65536" alone calibrate --rank -1
expect 2 "--rank 1e3: must be a whole number" alone calibrate --rank 1e3
expect 2 "--samples : must be a whole number from 1" alone calibrate --samples ""
expect 2 "--samples 99999999999999999999: must be" alone calibrate --samples 99999999999999999999
expect 2 "--alpha nan: must be a number from 0 to 1" alone calibrate --alpha nan
expect 2 "--solver qr: must be krylov or qr-rsvd" alone calibrate --solver qr
expect 2 "--protocol x: must be gptq, llamacpp or windows" alone eval --protocol x
expect 2 "--device gpu: must be auto, cpu" alone eval --device gpu
expect 2 "--device cuda:x: must be auto, cpu" alone eval --device cuda:x
expect 2 "--config nowhere.conf: No such file" alone eval --config nowhere.conf

# Tasks of srun without MPI are ranks of nothing: the first says so.
step() { env SLURM_STEP_NUM_TASKS="$1" SLURM_PROCID="$2" "$GLOWQ" --version >out 2>err; }
expect 0 "4 copies of glowq" step 4 0
for task in "4 1" "1 0"; do
    step $task
    [ -s err ] && fail "a warning of copies as task ${task#* } of ${task% *}"
done
SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0 expect 0 "Usage: glowq" ranks 2 eval --help
grep -q "copies" err && fail "ranks under a launcher are told that they are copies"

# All ranks leave with the code; rank 0 alone explains.
expect 2 "--bits 5" ranks 3 calibrate --bits 5
same "$(grep -c "must be 2, 3, 4 or 8" err)" 1 "times that the message is printed on 3 ranks"
expect 0 "Usage: glowq" ranks 2 eval --help
same "$(grep -c "^Usage: glowq" out)" 1 "times that help is printed on 2 ranks"

# flag > environment > config file > default, in both forms of --print-config.
cat >good.conf <<'END'
# one file for all subcommands
threads = 3
calibrate {
    rank = 16
    text = {"a.txt", "b c.txt"}
    alpha = 0.25
    overwrite = yes
}
eval { ctx = 99 }
END
value_of() { grep "^$1 *=" out | sed 's/^[^=]*= *//'; }
unset GLOWQ_THREADS
GLOWQ_RANK=17 GLOWQ_GROUP_SIZE=64 GLOWQ_SEED="" expect 0 "# glowq calibrate" alone calibrate -c good.conf --alpha 0.5 --print-config
same "$(value_of rank)" "17  # environment GLOWQ_RANK" "rank"
same "$(value_of group-size)" "64  # environment GLOWQ_GROUP_SIZE" "group-size"
same "$(value_of alpha)" "0.5  # flag" "alpha"
same "$(value_of threads)" "3  # config good.conf" "threads"
same "$(value_of text)" '{"a.txt", "b c.txt"}  # config good.conf' "text"
same "$(value_of overwrite)" "true  # config good.conf" "overwrite"
same "$(value_of seed)" "0  # default" "seed"
cp out printed.conf # what is printed can be read again
expect 0 "# glowq calibrate" alone calibrate -c printed.conf --print-config
same "$(value_of rank)" "17  # config printed.conf" "rank, read again"
same "$(value_of text)" '{"a.txt", "b c.txt"}  # config printed.conf' "text, read again"
expect 0 "# glowq eval" alone eval -c good.conf --print-config
same "$(value_of ctx)" "99  # config good.conf" "ctx"
GLOWQ_TEXT=a:b expect 0 "environment GLOWQ_TEXT" alone eval --print-config
same "$(value_of text)" '{"a", "b"}  # environment GLOWQ_TEXT' "text"
GLOWQ_CTX=x expect 2 "GLOWQ_CTX = x: must be a whole number" alone eval
# A name in the environment that nothing reads is told once, with the nearest one that is read; none of these is.
GLOWQ_BIT=3 GLOWQ_DEVICES=cpu GLOWQ_TUEN=off GLOWQ_WEATHER=fair GLOWQ_RNAK="" expect 0 "# glowq calibrate" ranks 2 calibrate \
    --print-config --quiet
for slip in "GLOWQ_BIT in the environment is no variable of glowq and has no effect; did you mean GLOWQ_BITS?" \
    "GLOWQ_DEVICES in the environment is no variable of glowq and has no effect; did you mean GLOWQ_DEVICE?" \
    "GLOWQ_TUEN in the environment is no variable of glowq and has no effect; did you mean GLOWQ_TUNE?" \
    "GLOWQ_WEATHER in the environment is no variable of glowq and has no effect"; do
    same "$(grep -cFx "glowq: warning: $slip" err)" 1 "times that it is said: $slip"
done
same "$(grep -c "in the environment" err)" 4 "variables that are told of"
read_anywhere=$(cd "$GLOWQ_SOURCE_DIR/" && { grep -rhoE 'getenv\("GLOWQ_[A-Z_]+' base comm calib infer kernels launch model
    grep -rhoE '[$]\{?GLOWQ_[A-Z_]+' launch --include=*.sh --include=*.sbatch --include=*.service; } |
    grep -oE 'GLOWQ_[A-Z_]+' | sort -u)
[ "$(echo "$read_anywhere" | wc -l)" -gt 10 ] || fail "variables that the program reads: $read_anywhere"
for variable in $read_anywhere; do
    env "$variable=1" "$GLOWQ" tokenize --print-config >out 2>err # an option may refuse the value
    grep -q "$variable in the environment" err && fail "$variable is read and yet unknown"
done

# An option called like a subcommand has its place in its own subcommand's section.
printf '%s\n' 'plan {' '    serve = true' '}' 'serve { port = 81 }' >both.conf
expect 0 "# glowq plan" alone plan -c both.conf --synthetic x --print-config
grep -q "^plan { serve  *= true }  # config both.conf" out || fail "plan's option serve isn't taken: $(grep serve out)"
[ -s err ] && fail "a configuration file makes libraries talk: $(why)"
cp out printed.conf
expect 0 "= true }  # config printed.conf" alone plan -c printed.conf --print-config
expect 0 "# glowq serve" alone serve -c both.conf --model x --print-config
same "$(value_of port)" "81  # config both.conf" "port"
expect 2 "--config .: Is a directory" alone plan -c . --print-config
mkfifo waits && expect 2 "--config waits: not a regular file" alone plan -c waits --print-config
[ ! -c /dev/zero ] || expect 2 "--config /dev/zero: not a regular file" alone plan -c /dev/zero --print-config
truncate -s 1048577 long.conf
expect 2 "--config long.conf: 1048577 bytes; a configuration has at most 1048576" alone plan -c long.conf --print-config
{ printf '#%.0s' $(seq 1000) && echo && echo "ctx = 98"; } >long.conf
expect 0 "98  # config long.conf" alone eval -c long.conf --print-config
echo "ctx = -4" >bad.conf
expect 2 "bad.conf: ctx = -4: must be a whole number" alone eval -c bad.conf
echo "rnak = 4" >bad.conf
expect 2 "bad.conf:1: no such option 'rnak'" alone calibrate -c bad.conf
echo "calibrate { bits = " >bad.conf
expect 2 "bad.conf" alone calibrate -c bad.conf

# A server that others could reach has a key.
for host in 0.0.0.0 127.0.0.1.example.org 127.1.2 ::; do
    expect 2 "--host $host is reachable from outside" alone serve --model x --host "$host"
done

# Lengths that no prompt has, and numbers beyond 64 bits.
for line in "0 5" "5 16777217" "1 9223372036854775807" "99999999999999999999 1" "1.5 2" "3" "1 2 -1" "1 2 nan" "1 2 inf"; do
    echo "$line" >trace
    expect 3 "\"$line\" isn't PROMPT GENERATE" alone bench-serve --trace trace --vocab 9
done

# A full disk under stdout is an error, a reader that has had enough is not.
if [ -c /dev/full ]; then
    "$GLOWQ" --version >/dev/full 2>err
    same $? 1 "exit code when stdout is full"
    grep -q "No space left" err || fail "a full stdout isn't named"
fi
code=$( (("$GLOWQ" inspect "$TINY" --json; echo $? >code) | head -c 1 >/dev/null) 2>err; cat code)
same "$code" 0 "exit code when the reader of stdout leaves"

if command -v python3 >/dev/null; then
    for arguments in "--version --json" "calibrate --print-config --json" "inspect $TINY --json" \
        "inspect $TINY/model.safetensors --json"; do
        alone $arguments
        python3 -c 'import json,sys; assert json.load(open("out"))["schema_version"] == 1' ||
            fail "not one JSON object with schema_version: glowq $arguments"
    done
fi
finish
