/* SPDX-License-Identifier: Apache-2.0
 * --version: this program, its compiler and every library as loaded now, for bug reports.
 */
#include "launch/commands.h"

#include "launch/commit.h" /* generated at every build: launch/commit.cmake */

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cblas.h>
#include <confuse.h>
#include <gnu/libc-version.h>
#include <hdf5.h>
#include <mpi.h>
#include <openssl/crypto.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>
#include <xxhash.h>

int print_versions(int as_json)
{
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING] = "", hdf5[32], blas[512], xxhash[16], pcre2[64] = "", cuda[512],
         nccl[512];
    unsigned major = 0, minor = 0, patch = 0, x = XXH_versionNumber();
    int n = 0;
    MPI_Get_library_version(mpi, &n); /* one of the few calls allowed before MPI_Init */
    mpi[strcspn(mpi, ",\n")] = 0;
    H5get_libversion(&major, &minor, &patch);
    snprintf(hdf5, sizeof hdf5, "%u.%u.%u", major, minor, patch);
    snprintf(blas, sizeof blas, "%s (core in use: %s)", openblas_get_config(), openblas_get_corename());
    snprintf(xxhash, sizeof xxhash, "%u.%u.%u", x / 10000, x / 100 % 100, x % 100);
    backend_version("cuda", cuda, sizeof cuda);
    comm_nccl_version(nccl, sizeof nccl);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    const struct {
        const char *name, *value;
    } rows[] = {
        {"glowq", GLOWQ_VERSION},
        {"commit", GLOWQ_COMMIT},
        {"compiler", "C11, " __VERSION__},
        {"mpi", mpi},
        {"cuda", cuda},
        {"nccl", nccl},
        {"hdf5", hdf5},
        {"blas", blas},
        {"pcre2", pcre2},
        {"utf8proc", utf8proc_version()},
        {"jansson", JANSSON_VERSION},
        {"libcrypto", OpenSSL_version(OPENSSL_VERSION)},
        {"xxhash", xxhash},
        {"confuse", confuse_version},
        {"libc", gnu_get_libc_version()},
    };
    const size_t n_rows = sizeof rows / sizeof rows[0];
    if (as_json) {
        json_t *page = json_pack("{s:i}", "schema_version", JSON_SCHEMA_VERSION);
        for (size_t i = 0; page && i < n_rows; i++)
            json_object_set_new(page, rows[i].name, json_string(rows[i].value));
        return out_json(page);
    }
    for (size_t i = 0; i < n_rows; i++)
        out_print("%-10s %s\n", rows[i].name, rows[i].value);
    return 0;
}
