# SPDX-License-Identifier: Apache-2.0
# glowq serve over HTTP, see ../serve.py: serve.sh api|limits|lost|bytes|clients|soak RANKS
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
PYTHON=${PYTHON:-python3}
need "$PYTHON"
code=0
"$PYTHON" "$GLOWQ_SOURCE_DIR/tests/serve.py" "$@" || code=$?
[ $code != 77 ] || exit 77
[ $code = 0 ] || fail "serve.py $*: $(tail -n 3 server.err)"
finish
