# SPDX-License-Identifier: Apache-2.0
# glowq serve over HTTP, see ../serve.py: serve.sh api|limits|lost|bytes|soak RANKS
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
need python3
python3 "$GLOWQ_SOURCE_DIR/tests/serve.py" "$@" || fail "serve.py $*: $(tail -n 3 server.err)"
finish
