/* SPDX-License-Identifier: Apache-2.0
 * Names of the environment that nothing reads: a slip like GLOWQ_BIT=3 would else be obeyed by nobody and noticed by nobody.
 */
#include "launch/options_private.h"

#include <stdlib.h>
#include <string.h>

extern char **environ;

/* Read elsewhere than by an option of the name. */
static const char *const others[] = {
    "GLOWQ_DISABLE",       /* kernels/backends.c: instruction sets to do without */
    "GLOWQ_TUNE",          /* infer/tune.c: measured tables of the kernels */
    "GLOWQ_MODULE_DIR",    /* kernels/module.c: where the GPU's module is */
    "GLOWQ_NCCL",          /* comm/comm_nccl_open.c: library, or off */
    "GLOWQ_NCCL_TIMEOUT",  /* the same: patience inside a collective */
    "GLOWQ_START_TIMEOUT", /* launch/glowq.c: patience until all ranks are there */
    "GLOWQ_SIM_FAIL",      "GLOWQ_SIM_MEMORY", "GLOWQ_SIM_GPUS", "GLOWQ_SIM_ORDER", /* kernels/cuda/sim/sim.h */
    "GLOWQ_EXIT_FILE",                                                              /* launch/serve.sh */
    "GLOWQ_RANKS",         "GLOWQ_ROOT",                                            /* launch/systemd, launch/slurm */
    "GLOWQ_BINARY",        "GLOWQ_SOURCE_DIR", "GLOWQ_MPIEXEC",  "GLOWQ_DATA",      /* the tests */
};

/* Is it called `name`? If not, and if it is the nearest so far, it goes into nearest. */
static int compare(const char *name, const char *known, int *best, char *nearest, size_t size)
{
    const int d = edit_distance(name, known);
    if (d > 0 && d < *best) {
        *best = d;
        snprintf(nearest, size, "%s", known);
    }
    return d == 0;
}

static int is_known(const struct command *const *commands, const char *name, char *nearest, size_t size)
{
    char variable[80];
    int best = slip_limit(name + strlen("GLOWQ_"));
    nearest[0] = 0;
    for (int i = 0; commands[i]; i++) {
        const struct option_spec *const tables[] = {commands[i]->options, common_options};
        for (int t = 0; t < 2; t++) {
            for (const struct option_spec *spec = tables[t]; spec->type != OPTION_END; spec++) {
                if (!spec->name)
                    continue;
                spec_variable(spec, variable, sizeof variable);
                if (compare(name, variable, &best, nearest, size))
                    return 1;
            }
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (compare(name, others[i], &best, nearest, size))
            return 1;
    return 0;
}

int options_stray_variable(const struct command *const *commands, int *at, char *name, char *nearest, size_t size)
{
    for (; environ && environ[*at]; (*at)++) {
        const char *entry = environ[*at], *value = strchr(entry, '=');
        if (strncmp(entry, "GLOWQ_", strlen("GLOWQ_")) != 0 || !value || !value[1]) /* empty counts as unset */
            continue;
        snprintf(name, size, "%.*s", (int)(value - entry), entry);
        if (is_known(commands, name, nearest, size))
            continue;
        (*at)++;
        return 1;
    }
    return 0;
}
