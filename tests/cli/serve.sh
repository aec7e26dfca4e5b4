# SPDX-License-Identifier: Apache-2.0
# glowq serve over HTTP: serve.sh api|limits|loading|lost|clients RANKS as in ../serve.py, serve.sh bytes|slow|soak RANKS as in ../serve_load.py
. "$GLOWQ_SOURCE_DIR/tests/cli/lib.sh"
PYTHON=${PYTHON:-python3}
need "$PYTHON"
case $1 in bytes | slow | soak) program=serve_load.py ;; *) program=serve.py ;; esac
if [ "$1" = loading ] && ldd "$GLOWQ" | grep -q "libasan\|libtsan"; then skip "a sanitizer has to be loaded before slow_read.c"; fi
code=0
PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$GLOWQ_SOURCE_DIR/tests/$program" "$@" || code=$?
[ $code != 77 ] || exit 77
[ $code = 0 ] || fail "$program $*: $(tail -n 3 server.err)"
finish
