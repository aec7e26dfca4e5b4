# SPDX-License-Identifier: Apache-2.0
# --json: one object on standard output, whose members are those that docs/json.md lists for the command.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
cat >compare.py <<'END'
import json, re, sys

command, with_or_without = sys.argv[2], set(sys.argv[3:])
rows = re.findall(r"(?m)^\| (.*?) \| (.*) \|$", open(sys.argv[1]).read())
row = next((text for names, text in rows if f"`{command}`" in names), None)
listed = set(re.findall(r"`([a-z_0-9]+)`", row)) if row else sys.exit(f"{command}: not in docs/json.md")
page = json.load(open("out"))
if page.pop("schema_version") != 1:
    sys.exit(f"{command}: schema_version")
def members(v):
    if isinstance(v, dict):
        for name, value in v.items():
            yield name
            yield from members(value)
    for value in v if isinstance(v, list) else ():
        yield from members(value)
# a name means one thing: what has it is of one type, whatever the command
kinds = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
with open("types", "a") as types:
    types.writelines(f"{name} {kinds[type(v)]}\n" for name, v in page.items() if v is not None)
unlisted = set(page) - listed
absent = {name for name in listed - with_or_without if name not in set(members(page)) and f'"{name}"' not in json.dumps(page)}
if unlisted or absent:
    sys.exit(f"{command}: members that docs/json.md lacks: {sorted(unlisted)}; that it lists and that aren't there: {sorted(absent)}")
END
# documented COMMAND "OPTIONAL..." ARGUMENT...: OPTIONAL may be missing, or are words that stand for values.
documented() {
    command=$1 optional=$2; shift 2
    alone "$@" --json || fail "glowq $*: $(why)"
    python3 compare.py "$GLOWQ_SOURCE_DIR/docs/json.md" "$command" $optional 2>told || fail "$(cat told)"
}

MOE=$GLOWQ_SOURCE_DIR/examples/moe
states="empty running stopped failed killed finished"
documented calibrate "" calibrate --model "$MOE" --text "$DENSE_TEXT" --out moe.glowq --samples 2 --seq-len 64 --rank 8 --keep-stats
documented solve "" solve --stats moe.glowq --model "$MOE" --out solved.glowq --rank 4
documented eval "" eval --model "$MOE" --reference "$DENSE" --text "$DENSE_TEXT" --max-tokens 600 --per-token-nll
documented select "kl nll" select --model moe.glowq --reference "$MOE" --text "$DENSE_TEXT" --max-tokens 600 --score energy
documented generate "stop length" generate --model "$DENSE" --prompt hi --max-tokens 3
documented plan "spilled_to" plan --model "$MOE" --ranks 2 --gpu-memory 80 --profile "$GLOWQ_SOURCE_DIR/docs/results/plan-h100-assumed.json"
documented plan "spilled_to expert_traffic stages" plan --model "$DENSE"
documented "plan --serve" "" plan --serve --model "$DENSE"
documented status "$states" status moe.glowq
documented bench "products" bench --model "$DENSE" --batch 1 --repeat 1 --prompt 8 --generate 4
documented doctor "" doctor
documented inspect "checkpoint glowq hdf5 manifest expert_layers objects" inspect "$DENSE"
documented inspect "checkpoint glowq hdf5 config tensors objects" inspect moe.glowq
documented inspect "checkpoint glowq hdf5 config tensors manifest expert_layers" inspect moe.glowq/head.h5
documented verify "" verify moe.glowq
printf 'hi there' >text
alone tokenize --model "$DENSE" --json <text || fail "tokenize: $(why)"
python3 compare.py "$GLOWQ_SOURCE_DIR/docs/json.md" tokenize texts 2>told || fail "$(cat told)"
echo "73 74" >ids
alone tokenize --model "$DENSE" --decode --json <ids || fail "tokenize --decode: $(why)"
python3 compare.py "$GLOWQ_SOURCE_DIR/docs/json.md" tokenize strings 2>told || fail "$(cat told)"

same "$(sort -u types | cut -d' ' -f1 | uniq -d | tr '\n' ' ')" "" "names of members that are of two types"

# A command that fails has no result to print.
expect 1 "no such folder" alone eval --model nowhere --text text --json
expect 2 "--bits 5" alone calibrate --bits 5 --json
finish
