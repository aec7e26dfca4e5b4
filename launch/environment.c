/* SPDX-License-Identifier: Apache-2.0
 * What libraries read from the environment when they are loaded, before main: the only cure for a dynamically linked program
 * is to set it and execute itself again: 7 ms, once, before MPI_Init (whose launcher sees the same process).
 *
 * OPENBLAS_CORETYPE    OpenBLAS 0.3.21 (Debian 12) doesn't know processors younger than itself and falls back to kernels of
 *                      2004 ("Prescott", SSE3), 5 to 8 times slower and silent about it.
 * OPENBLAS_NUM_THREADS is 1: more than one thread inside a leaf changes its bits.
 * GOMP_SPINCOUNT       threads that wait for each other spin some 40 us and then sleep. OpenMP's default, seconds of spinning,
 *                      makes ranks that share cores with anything else 10 to 30 times slower.
 */
#include "launch/commands.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

char *openblas_get_corename(void);

/* The kernel set this processor can run, or NULL when OpenBLAS chose well enough by itself. */
static const char *better_core(void)
{
#if defined(__x86_64__)
    static const char *const outdated[] = {"Generic", "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom"};
    const char *chosen = openblas_get_corename();
    int is_outdated = 0;
    for (size_t i = 0; i < sizeof outdated / sizeof outdated[0]; i++)
        is_outdated |= strcasecmp(chosen, outdated[i]) == 0;
    __builtin_cpu_init();
    if (!is_outdated)
        return NULL;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return "SKYLAKEX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "HASWELL";
#endif
    return NULL;
}

void environment_fix(char **argv)
{
    const char *again = getenv("GLOWQ_EXECUTED_AGAIN");
    const char *threads = getenv("OPENBLAS_NUM_THREADS");
    const char *core = getenv("OPENBLAS_CORETYPE") ? NULL : better_core(); /* the user's own choice stands */
    const int spins = getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY");
    if (again) {
        unsetenv("GLOWQ_EXECUTED_AGAIN"); /* programs that we might start decide for themselves */
        return;
    }
    if (!core && spins && threads && strcmp(threads, "1") == 0)
        return;
    if (core)
        setenv("OPENBLAS_CORETYPE", core, 1);
    if (!spins)
        setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    setenv("GLOWQ_EXECUTED_AGAIN", "1", 1);
    execv("/proc/self/exe", argv); /* returns only on failure: then the program runs on, slower */
}
