#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a relocatable folder of an existing build that runs where nothing is installed and nobody is root:
#   launch/bundle.sh OUT && OUT/run.sh mpirun -n 2 glowq calibrate ...
# Inside: glowq and its modules, Open MPI with its plugins and help files, HDF5, OpenBLAS and all else they load but glibc,
# CUDA and the driver; and the GPU tests with their data (OUT/run.sh tests/gpu-suite.sh RESULTS).
set -eu
[ $# = 1 ] || { echo "usage: launch/bundle.sh OUT" >&2; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
BUILD="${BUILD:-build}"                          # an existing build
MAX_MIB="${MAX_MIB:-60}"                         # refuse to make more
LIBS=/usr/lib/$(gcc -print-multiarch)
MPI=$LIBS/openmpi/lib PMIX=$LIBS/pmix2

fail() { echo "bundle.sh: $*" >&2; exit 1; }
[ -x "$BUILD/glowq" ] || fail "$BUILD/glowq isn't there: build first (launch/build.sh)"
[ -d "$MPI/openmpi3" ] || fail "Open MPI's plugins aren't in $MPI (Debian's libopenmpi3 puts them there)"
[ -z "$(ls -A "$OUT")" ] || [ -e "$OUT/run.sh" ] || fail "$OUT holds something else"
rm -rf "$OUT" && mkdir -p "$OUT/bin" "$OUT/lib/glowq" "$OUT/etc" "$OUT/share" "$OUT/openmpi/openmpi3" "$OUT/pmix/lib/pmix"

# ---- programs, modules, tests and their data
list=$BUILD/tests/gpu.list
programs=$(cut -f 2 "$list" | sort -u)
cp "$BUILD/glowq" "$BUILD/tests/bench_kernels" "$BUILD/tests/bench_solve" "$OUT/bin/"
cp "$BUILD"/libglowq_*.so "$OUT/lib/glowq/"
mkdir -p "$OUT/source/tests/cli" "$OUT/source/examples"
for p in $programs; do
    case $p in
    cli/*) cp "tests/$p" tests/cli/lib.sh "$OUT/source/tests/cli/" ;;
    *) [ ! -x "$BUILD/tests/$p" ] || cp "$BUILD/tests/$p" "$OUT/bin/" ;;
    esac
done
cp -r "$list" tests/golden tests/bench_solve_torch.py tests/gpu-suite.sh "$OUT/source/tests/"
rm -rf "$OUT"/source/tests/golden/chat* "$OUT"/source/tests/golden/*.glowq "$OUT"/source/tests/golden/tokenizer* \
    "$OUT"/source/tests/golden/hostile "$OUT"/source/tests/golden/*.py # of no GPU test
cp -r examples/dense examples/texts examples/shapes examples/golden.json "$OUT/source/examples/"
ln -s source/tests "$OUT/tests"

# ---- Open MPI: the launcher and its plugins, but for fabrics, other launchers, one-sided access, SHMEM, checkpointing and profiling
cp -L /usr/bin/orterun "$OUT/bin/mpirun"
cp -L /usr/bin/orted "$OUT/bin/"
for f in "$MPI"/openmpi3/mca_*.so; do
    case ${f##*/mca_} in
    *_ofi.so | *_openib.so | *_ucx.so | *_psm*.so | *_portals4.so | *_flux.so | *monitoring.so | *gridengine* | schizo_jsm* | \
    memheap_* | osc_* | op_avx* | scoll_* | spml_* | sshmem_* | vprotocol_* | atomic_* | compress_* | ras_simulator* | crs_* | topo_treematch* | \
    io_romio* | fbtl_* | fs_* | fcoll_* | sharedfp_* | oob_ud* | btl_usnic* | mtl_*) ;;
    *) cp -L "$f" "$OUT/openmpi/openmpi3/" ;;
    esac
done
cp -r /usr/share/openmpi "$OUT/share/"
rm -f "$OUT"/share/openmpi/*wrapper-data.txt
[ ! -d "$PMIX/lib/pmix" ] || cp -L "$PMIX"/lib/pmix/*.so "$OUT/pmix/lib/pmix/"
[ ! -d "$PMIX/share" ] || cp -r "$PMIX/share" "$OUT/pmix/"
cat >"$OUT/etc/openmpi-mca-params.conf" <<'C'
btl = self,vader,tcp
pml = ob1
btl_base_warn_component_unused = 0
orte_tmpdir_base = /tmp
C
: >"$OUT/etc/openmpi-default-hostfile"

# ---- OpenBLAS and LAPACKE: one library of the routines that are called, for three kinds of processors (SSE3, AVX2, AVX-512)
# instead of twenty, made from Debian's static ones: 5 MB instead of 46. The one function that they call of Fortran's own library, to
# put a routine's name together, saves that library's 3 MB.
undefined() { nm -D --undefined-only "$1" 2>/dev/null | awk '{ print $2 }' | grep -E '^(cblas_|LAPACKE_|openblas_)' || true; }
as() { to=$1; shift; for core in "$@"; do echo "-Wl,--defsym,gotoblas_$core=gotoblas_$to"; done; }
wanted=$(for f in "$OUT"/bin/* "$OUT"/lib/glowq/*.so; do undefined "$f"; done | sort -u | sed 's/^/-Wl,-u,/')
cat >"$OUT/fortran.c" <<'C'
#include <string.h>
/* to = a // b as Fortran assigns it: cut off, or filled up with blanks */
void _gfortran_concat_string(size_t n, char *to, size_t n_a, const char *a, size_t n_b, const char *b)
{
    n_a = n_a < n ? n_a : n;
    n_b = n_b < n - n_a ? n_b : n - n_a;
    memcpy(to, a, n_a);
    memcpy(to + n_a, b, n_b);
    memset(to + n_a + n_b, ' ', n - n_a - n_b);
}
C
gcc -shared -fPIC -o "$OUT/lib/libopenblas.so.0" -Wl,-soname,libopenblas.so.0 -Wl,-z,defs $wanted "$OUT/fortran.c" \
    $(as PRESCOTT ATOM BARCELONA BOBCAT BULLDOZER CORE2 DUNNINGTON EXCAVATOR NANO NEHALEM OPTERON OPTERON_SSE3 PENRYN \
        PILEDRIVER SANDYBRIDGE STEAMROLLER) $(as HASWELL ZEN) $(as SKYLAKEX COOPERLAKE) \
    "$LIBS/liblapacke.a" "$LIBS/libopenblas.a" -lm -lpthread
rm "$OUT/fortran.c"
for f in liblapacke.so.3 liblapack.so.3 libblas.so.3 libtmglib.so.3; do ln -s libopenblas.so.0 "$OUT/lib/$f"; done

# ---- libcurl, with which HDF5 could read from S3 and nothing here does: its 11 MB of libraries become functions that refuse.
cat >"$OUT/curl.c" <<'C'
long curl_global_init(void) { return 2; }
void curl_global_cleanup(void) {}
void *curl_easy_init(void) { return 0; }
long curl_easy_perform(void) { return 2; }
long curl_easy_setopt(void) { return 2; }
void curl_easy_cleanup(void) {}
void *curl_slist_append(void) { return 0; }
void curl_slist_free_all(void) {}
C
echo 'CURL_OPENSSL_4 { global: curl_*; };' >"$OUT/curl.map"
gcc -shared -fPIC -o "$OUT/lib/libcurl.so.4" -Wl,-soname,libcurl.so.4 -Wl,--version-script="$OUT/curl.map" "$OUT/curl.c"
rm "$OUT/curl.c" "$OUT/curl.map"

# ---- GnuTLS, with which libmicrohttpd could serve TLS and nothing here does: its 7 MB likewise, function by function as the library
# asks for them.
mhd=$LIBS/libmicrohttpd.so.12
cp -L "$mhd" "$OUT/lib/"
tls=$(nm -D --undefined-only "$mhd" | awk '$2 ~ /^gnutls_/ { print $2 }')
for f in $tls; do echo "long ${f%@*}(void) { return -1; }"; done | sort -u >"$OUT/tls.c"
for v in $(echo "$tls" | sed 's/.*@//' | sort -u); do
    echo "$v { global: $(echo "$tls" | sed -n "s/@$v\$/;/p" | tr '\n' ' ') };"
done >"$OUT/tls.map"
gcc -shared -fPIC -w -o "$OUT/lib/libgnutls.so.30" -Wl,-soname,libgnutls.so.30 -Wl,--version-script="$OUT/tls.map" "$OUT/tls.c"
rm "$OUT/tls.c" "$OUT/tls.map"

# ---- everything that these load, until nothing new is found
not_ours='/(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libutil|libnsl|libcuda|libcudart|libcublas|libcublasLt|libcusolver|libcusparse|libnvJitLink|libnccl)[-.][^/]*$'
needed() {
    find "$OUT/bin" "$OUT/lib" "$OUT/openmpi" "$OUT/pmix" -type f \( -name '*.so*' -o -perm -u+x \) -print0 |
        LD_LIBRARY_PATH="$OUT/lib" xargs -0 -n 1 ldd 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -Ev "$not_ours" | grep -v "^$OUT/"
}
while :; do
    new=$(needed | while read -r so; do [ -e "$OUT/lib/${so##*/}" ] || echo "$so"; done)
    [ -n "$new" ] || break
    cp -L $new "$OUT/lib/"
done
find "$OUT" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec strip --strip-unneeded {} + 2>/dev/null || true

# ---- how it is run
cat >"$OUT/run.sh" <<'W'
#!/bin/sh
# run.sh COMMAND...: runs it with this folder's programs and libraries first. CUDA is found where it usually is, or in CUDA_HOME.
D=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || { echo "usage: $0 COMMAND...   e.g. $0 mpirun -n 2 glowq --version" >&2; exit 2; }
export OPAL_PREFIX="$D" OPAL_LIBDIR="$D/openmpi" OPAL_PKGLIBDIR="$D/openmpi/openmpi3" OPAL_DATADIR="$D/share"
export OPAL_PKGDATADIR="$D/share/openmpi" OPAL_SYSCONFDIR="$D/etc" OPAL_BINDIR="$D/bin"
export PMIX_PREFIX="$D/pmix" PMIX_LIBDIR="$D/pmix/lib" PMIX_PKGLIBDIR="$D/pmix/lib/pmix" PMIX_DATADIR="$D/pmix/share"
export PMIX_PKGDATADIR="$D/pmix/share/pmix" PMIX_SYSCONFDIR="$D/etc"
# CUDA's libraries: a toolkit's, or those that Python packages bring along: first whichever has the cuBLAS that the module was built
# with, for another version's have other libraries under the same names. NCCL may be in either.
home=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}} blas=$(cat "$D/etc/cublas") cuda="" python=""
for d in "$home/lib64" "$home/lib" "$home/targets/x86_64-linux/lib"; do [ ! -d "$d" ] || cuda="$cuda:$d"; done
if command -v python3 >/dev/null; then
    python=$(python3 -c 'import glob, site, sysconfig
places = [sysconfig.get_paths()["purelib"], site.getusersitepackages()] + site.getsitepackages()
print("".join(":" + lib for d in dict.fromkeys(places) for lib in glob.glob(d + "/nvidia/*/lib")))' 2>/dev/null)
fi
if [ -e "$home/lib64/$blas" ] || [ -e "$home/lib/$blas" ] || [ -e "$home/targets/x86_64-linux/lib/$blas" ]; then
    cuda=$cuda$python
else
    cuda=$python$cuda
fi
export GLOWQ_HOST_LIBRARIES="${LD_LIBRARY_PATH:-}" # for the machine's own programs: this folder's libraries may be older than theirs
export LD_LIBRARY_PATH="$D/lib$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PATH="$D/bin:$PATH"
export GLOWQ_MODULE_DIR="$D/lib/glowq" GLOWQ_SOURCE_DIR="$D/source" GLOWQ_BINARY="$D/bin/glowq" GLOWQ_MPIEXEC="$D/bin/mpirun"
. "$D/etc/mpi_env.sh"
case $1 in tests/*) command=$D/$1; shift; set -- "$command" "$@" ;; esac
exec "$@"
W
cp launch/mpi_env.sh "$OUT/etc/"
readelf -d "$OUT"/lib/glowq/*.so | sed -n 's/.*NEEDED.*\[\(libcublas\.so[^]]*\)\]/\1/p' >"$OUT/etc/cublas" # empty without the CUDA module
chmod +x "$OUT/run.sh"
mib=$(du -sm --apparent-size "$OUT" | cut -f 1)
echo "$OUT: $mib MiB"
[ "$mib" -le "$MAX_MIB" ] || fail "more than $MAX_MIB MiB"
