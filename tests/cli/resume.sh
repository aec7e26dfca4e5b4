# SPDX-License-Identifier: Apache-2.0
# Hidden states: an interrupted calibration goes on after the last layer whose hidden states are kept, on another number of ranks,
# to the bytes of a run that was never disturbed; where they are damaged or missing the layers before are run again. What a
# calibration tells in events.jsonl, and what status makes of it.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need pgrep
need python3
generations() { (cd "$1/hidden" 2>/dev/null && ls -d 0* 2>/dev/null | tr '\n' ' '); }
first_layer() { sed -n 's/^  "first_layer": \([0-9]*\),$/\1/p' "$1/run.json"; }
state() { "$GLOWQ" status "$1" --json >status.json || fail "status of $1"; field state status.json; }

# interrupt SIGNAL LAYERS, more options: sends the signal to rank 0 once so many layers of cut.glowq are there.
interrupt() {
    signal=$1 enough=$2; shift 2
    calibrate_dense cut.glowq "$@" &
    job=$!
    wait_for_layers cut.glowq "$enough"
    kill -s "$signal" "$(processes_of cut.glowq | head -n 1)" || fail "nobody to send $signal to: $(why)"
    wait "$job"
    code=$?
}

calibrate_dense whole.glowq --hidden-every 0 || fail "calibrate: $(why)"
[ -e whole.glowq/hidden ] && fail "hidden states were kept unasked"
calibrate_dense kept.glowq --hidden-every 1 || fail "calibrate --hidden-every 1: $(why)"
same "$(bytes_of kept.glowq)" "$(bytes_of whole.glowq)" "bytes with hidden states kept"
[ -e kept.glowq/hidden ] && fail "hidden states are left in a finished folder"
same "$(grep -c '"event":"hidden"' kept.glowq/events.jsonl)" 5 "times that hidden states were kept"

# A clean stop leaves the states of its last layer; the rest needs no layer before it.
launch_on 2
interrupt USR1 2 --hidden-every 100
same "$code" 75 "exit code after USR1"
done_layers=$(n_layers cut.glowq)
same "$(state cut.glowq)" stopped "state after USR1"
same "$(field n_published status.json)" "$done_layers" "layers that status counts"
same "$(field reason status.json)" SIGUSR1 "reason that status gives"
same "$(field hidden_layer status.json)" $((done_layers - 1)) "layer whose hidden states status tells of"
cp -r cut.glowq saved.glowq
launch_on 3
calibrate_dense cut.glowq || fail "resuming on 3 ranks: $(why)"
same "$(first_layer cut.glowq)" "$done_layers" "first layer run by the resume"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after a stop"
[ -e cut.glowq/hidden ] && fail "hidden states are left after a resume"
same "$(state cut.glowq)" finished "state of a finished run"
python3 - cut.glowq/events.jsonl "$done_layers" <<'END' || fail "events after a resume"
import json, sys
events = [json.loads(line) for line in open(sys.argv[1])]
done = int(sys.argv[2])
kinds = [e["event"] for e in events]
assert kinds.count("start") == 2 and kinds.count("signal") == 1 and kinds[-1] == "end", kinds
second = events[kinds.index("signal") + 1:]
assert second[0]["event"] == "start" and second[0]["first"] == done and second[0]["ranks"] == 3
assert [e["layer"] for e in second if e["event"] == "layer"] == list(range(done, 6))
assert all("time" in e for e in events)
END

# A damaged or missing super-block: everything is run again, to the same bytes, and it is said.
for harm in damage remove cursor; do
    rm -rf cut.glowq && cp -r saved.glowq cut.glowq
    block=$(find cut.glowq/hidden -name '*.h5' | sort | tail -n 1)
    case $harm in
    damage) printf 'x' | dd of="$block" bs=1 seek=100001 conv=notrunc 2>/dev/null ;;
    remove) rm "$block" ;;
    cursor) echo '{' >cut.glowq/hidden/cursor.json ;;
    esac
    launch_on 2
    [ "$harm" = remove ] && LAUNCH=""
    calibrate_dense cut.glowq || fail "resuming after $harm: $(why)"
    grep -q "warning.*hidden" err || fail "$harm isn't told: $(cat err)"
    [ "$harm" = cursor ] || grep -q "$block" err || fail "$harm of $block isn't named: $(cat err)"
    same "$(first_layer cut.glowq)" 0 "first layer run after $harm"
    same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after $harm"
done

# Killed: the states of the last N-th layer are there, and those before them, which serve when they are damaged.
rm -rf cut.glowq
LAUNCH=""
interrupt KILL 5 --hidden-every 2
same "$code" 137 "exit code after KILL"
same "$(state cut.glowq)" killed "state after KILL"
same "$(generations cut.glowq)" "0001 0003 " "generations on disk"
rm -rf saved.glowq && cp -r cut.glowq saved.glowq
launch_on 4
calibrate_dense cut.glowq || fail "resuming after KILL: $(why)"
same "$(first_layer cut.glowq)" 4 "first layer run after KILL"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes after KILL"
rm -rf cut.glowq && cp -r saved.glowq cut.glowq
rm -r cut.glowq/hidden/0003
LAUNCH=""
calibrate_dense cut.glowq || fail "resuming from the generation before: $(why)"
same "$(first_layer cut.glowq)" 2 "first layer run from the generation before"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes from the generation before"

# Of another text, or behind a layer that is missing, they don't count.
rm -rf cut.glowq && cp -r saved.glowq cut.glowq && rm cut.glowq/layers/0002.h5
calibrate_dense cut.glowq || fail "resuming with a layer missing: $(why)"
same "$(first_layer cut.glowq)" 2 "first layer run with layer 2 missing"
same "$(bytes_of cut.glowq)" "$(bytes_of whole.glowq)" "bytes with layer 2 missing"
rm -rf cut.glowq && cp -r saved.glowq cut.glowq && rm cut.glowq/layers/*
calibrate_dense cut.glowq --samples 127 || fail "hidden states of another text: $(why)"
same "$(first_layer cut.glowq)" 0 "first layer run with hidden states of another text"

# What status says of folders that are none, of old ones and of one that is being written.
expect 1 "no such folder" alone status nowhere.glowq
mkdir empty.glowq && same "$(state empty.glowq)" empty "state of an empty folder"
printf '{"event":"start","layers":6' >>saved.glowq/events.jsonl # killed within a line
same "$(state saved.glowq)" killed "state with half an event"
calibrate_dense cut.glowq --overwrite &
job=$!
seen=""
while kill -0 "$job" 2>/dev/null; do
    [ "$(state cut.glowq)" = running ] && seen=yes
done
wait "$job" || fail "a calibration that status looked at: $(why)"
same "$seen" yes "a run seen running"
finish
