# SPDX-License-Identifier: Apache-2.0
# tokenize: ids, delimiters, and the way back.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
ids() { "$GLOWQ" tokenize --model "$@" 2>err; }

for model in "$TINY" "$GLOWQ_SOURCE_DIR/examples/dense"; do
    for text in "$GOLDEN/text.txt" "$GLOWQ_SOURCE_DIR/examples/texts/heldout.txt"; do
        ids "$model" <"$text" >ids || fail "encode $text with $model"
        ids "$model" --decode <ids >back || fail "decode with $model"
        cmp -s "$text" back || fail "$text isn't the same after encode and decode with $model"
        [ "$(wc -l <ids)" = 1 ] || fail "ids of one text aren't one line"
    done
done

# A file stands for its folder.
same "$(printf 'the light' | ids "$TINY")" "$(printf 'the light' | ids "$TINY/tokenizer.json")" "folder and file"

# --add-bos puts the tokenizer's own BOS first; nothing else changes.
plain=$(printf 'the light' | ids "$TINY")
same "$(printf 'the light' | ids "$TINY" --add-bos)" "1 $plain" "--add-bos"

# Strings between exact delimiters, empty ones too, a line each; and joined again.
printf 'one##two####three\nfour##' >strings
ids "$TINY" --delimiter '##' <strings >lines
same "$(wc -l <lines)" 5 "lines of 5 strings"
for i in 1 2 3 4 5; do
    piece=$(printf 'one|two||three\nfour|' | tr '\n' '~' | cut -d'|' -f"$i" | tr '~' '\n')
    same "$(sed -n "${i}p" lines)" "$(printf %s "$piece" | ids "$TINY")" "string $i"
done
ids "$TINY" --delimiter '##' --decode <lines >back
cmp -s strings back || fail "strings aren't the same after encode and decode with a delimiter"

# A special token in the text is text, unless asked otherwise.
special=$(sed -n 's/.*"content": *"\(<[^"]*>\)".*/\1/p' "$TINY/tokenizer.json" | head -n 1)
if [ -n "$special" ]; then
    many=$(printf %s "$special" | ids "$TINY" | wc -w)
    one=$(printf %s "$special" | ids "$TINY" --parse-special | wc -w)
    [ "$many" -gt 1 ] || fail "$special in plain text is $many ids"
    same "$one" 1 "ids of $special with --parse-special"
    id=$(printf %s "$special" | ids "$TINY" --parse-special)
    same "$(echo "$id" | ids "$TINY" --decode)" "" "$special decoded"
    same "$(echo "$id" | ids "$TINY" --decode --keep-special)" "$special" "$special decoded with --keep-special"
else
    fail "no special token found in $TINY/tokenizer.json"
fi

same "$(printf '' | ids "$TINY" | wc -l)" 1 "lines of an empty text"
printf 'a\377b' | ids "$TINY" >out
same $? 3 "exit code of bytes that aren't UTF-8"
echo "1 2 x" | ids "$TINY" --decode >out
same $? 2 "exit code of ids that aren't numbers"
grep -q 'line 1: "x" is not a token id' err || fail "a bad id isn't named: $(cat err)"
echo "1 999999" | ids "$TINY" --decode >out
same $? 2 "exit code of an id beyond the vocabulary"
expect 1 "nowhere" alone tokenize --model nowhere
finish
