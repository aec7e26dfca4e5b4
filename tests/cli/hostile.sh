# SPDX-License-Identifier: Apache-2.0
# Malformed model folders (golden/hostile): each ends with an error that names what is wrong, quickly and in little memory.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
LIMIT_S=30
python3 "$GOLDEN/hostile/make_hostile.py" folders >cases || exit 1
[ "$(wc -l <cases)" -gt 150 ] || fail "only $(wc -l <cases) cases were made"
# 4 GB of addresses bound the memory of a claimed 2^62 tensor; the address sanitizer needs more for itself
bound="ulimit -v 4194304;"
ldd "$GLOWQ" 2>/dev/null | grep -q libasan && bound=""

check() { # LAUNCH NAME PATH WORD
    sh -c "$bound exec timeout -k 5 $LIMIT_S $1 \"\$@\"" sh "$GLOWQ" eval --model "$3" --text folders/text.txt --ctx 32 \
        --protocol windows --device cpu >out 2>err
    code=$?
    if [ "$4" = ok ]; then
        [ "$code" = 0 ] || fail "$2$5: the control ends with $code: $(why)"
        return
    fi
    case $code in
    1 | 2 | 3 | 4) ;;
    *) fail "$2$5: exit $code" ;;
    esac
    grep -a "glowq: error:" err | sed "s|folders/||g" | grep -qiF -e "$4" ||
        fail "$2$5: no \"$4\" in: $(grep -a 'glowq: error:' err | head -n 1)"
    [ -s out ] && fail "$2$5: data on stdout"
}

tab=$(printf '\t')
while IFS="$tab" read -r name path word; do
    check "" "$name" "$path" "$word" ""
done <cases
# The same on two ranks for one case of each kind: nobody is left waiting, and the code is the same.
for kind in valid header_truncated ranges_overlap nan_in_a_matrix nan_in_the_embedding index_shard_missing \
    config_unknown_architecture config_absent tokenizer_wordlevel tokenizer_larger_than_the_model; do
    line=$(grep "^$kind$tab" cases) || { fail "no case $kind"; continue; }
    path=$(echo "$line" | cut -f 2) word=$(echo "$line" | cut -f 3)
    check "" "$kind" "$path" "$word" ""
    first=$code
    check "$GLOWQ_MPIEXEC -n 2" "$kind" "$path" "$word" " on 2 ranks"
    same "$code" "$first" "$kind: exit code on 2 ranks and on 1"
done
finish
