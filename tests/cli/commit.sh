# SPDX-License-Identifier: Apache-2.0
# What --version shows as the commit, by launch/commit.cmake: the one that is built, with a mark where files differ from it; a header
# that doesn't change isn't written; a copy outside git has none, in somebody else's repository neither.
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need git
need cmake
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
commit() { # of the folder $1
    cmake -DSOURCE="$PWD/$1" -DOUT="$PWD/commit.h" -P "$GLOWQ_SOURCE_DIR/launch/commit.cmake" || fail "commit.cmake fails in $1"
    sed -n 's/^#define GLOWQ_COMMIT "\(.*\)"$/\1/p' commit.h
}
save() { git -C ours add file && git -C ours -c user.name=n -c user.email=e commit -qm "$1"; }
git init -q . && git -c user.name=n -c user.email=e commit -q --allow-empty -m outer
mkdir ours
echo 1 >ours/file
same "$(commit ours)" unknown "commit of a folder in another repository"
git init -q ours && save one
one=$(git -C ours rev-parse --short=12 HEAD)
same "$(commit ours)" "$one" "commit"
touch -d "2001-01-01" commit.h
same "$(commit ours)" "$one" "commit asked again"
[ commit.h -nt ours/file ] && fail "the same commit is written again"
echo 2 >ours/file
same "$(commit ours)" "$one-dirty" "commit of a file that differs"
save two
[ "$(commit ours)" != "$one" ] || fail "a new commit isn't seen"
git -C ours -c user.name=n -c user.email=e tag -a -m t v1
same "$(commit ours)" "$(git -C ours rev-parse --short=12 HEAD)" "commit with a tag"
finish
