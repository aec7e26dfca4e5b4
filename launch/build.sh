#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing (Debian or Ubuntu; as root or with sudo) and builds into BUILD.
set -eu
cd "$(dirname "$0")/.."
BUILD="${BUILD:-build}"                # where to build; the program is BUILD/glowq
TYPE="${TYPE:-RelWithDebInfo}"         # CMake's build type
JOBS="${JOBS:-$(nproc)}"               # compilers at a time
FLAGS="${FLAGS:-}"                     # more for CMake, e.g. -DGLOWQ_WERROR=ON
PACKAGES="cmake make gcc g++ libc6-dev pkg-config git python3 libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools
    libopenblas-dev liblapacke-dev libpcre2-dev libutf8proc-dev libjansson-dev libssl-dev libxxhash-dev libconfuse-dev
    libmicrohttpd-dev libcmocka-dev"

run() { echo "+ $*" >&2; "$@"; }

missing=""
if command -v dpkg-query >/dev/null; then
    for package in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
    done
fi
if [ -n "$missing" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    if [ -n "$sudo" ] && ! command -v sudo >/dev/null; then
        echo "build.sh: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    run $sudo apt-get update -qq
    run $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi
run cmake -S . -B "$BUILD" -DCMAKE_BUILD_TYPE="$TYPE" $FLAGS >&2
run cmake --build "$BUILD" -j "$JOBS" >&2
