#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds and runs the test suite. The last line counts: "N passed, N failed, N skipped"; the exit code is CTest's.
set -eu
cd "$(dirname "$0")/.."
BUILD="${BUILD:-build}"                # as for build.sh, which reads FLAGS, TYPE and JOBS too
TEST_JOBS="${TEST_JOBS:-2}"            # tests at a time; those with several ranks count for 2
CTEST_FLAGS="${CTEST_FLAGS:-}"         # e.g. "-L unit" or "-R cli"

export BUILD
launch/build.sh
. launch/mpi_env.sh
results="$BUILD/ctest.xml"
rm -f "$results"
code=0
echo "+ ctest --test-dir $BUILD -j $TEST_JOBS --output-on-failure $CTEST_FLAGS" >&2
ctest --test-dir "$BUILD" -j "$TEST_JOBS" --output-on-failure --no-tests=error --output-junit ctest.xml $CTEST_FLAGS ||
    code=$?

# First occurrence of NAME="number" in CTest's report, which is the whole suite's.
count() { grep -o "[ 	]$1=\"[0-9]*\"" "$results" | head -n 1 | grep -o '[0-9]*'; }
if [ ! -s "$results" ]; then
    echo "test.sh: CTest left no results" >&2
    exit 1
fi
total=$(count tests) failed=$(count failures) skipped=$(($(count skipped) + $(count disabled)))
echo "$((total - failed - skipped)) passed, $failed failed, $skipped skipped"
exit "$code"
