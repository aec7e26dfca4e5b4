/* SPDX-License-Identifier: Apache-2.0
 * A batch file: launch/slurm/calibrate.sbatch (built into the program) with a plan's resources and options. */
#include "launch/plan_output.h"

#include "base/err.h"
#include "base/file.h"
#include "launch/calibrate_sbatch.h"
#include "launch/calibration.h"

#include <stdlib.h>
#include <string.h>

/* Beside the planned memory of a rank: the program, MPI, HDF5. Time: what starting takes. */
enum { GRACE_MIB = 1024, MIN_MINUTES = 30 };

/* What the plan says of nodes, memory and time, behind the script's own lines: the later of two is Slurm's. */
static void print_resources(FILE *f, const struct answer *a)
{
    const struct forecast *plan = a->plan;
    const double *rate = plan_rates(a);
    const int per_host = a->room->is_gpu ? a->room->gpus_per_host : a->room->per_host;
    const int tasks = (int)min_i64(per_host, plan->n_ranks), nodes = (plan->n_ranks + tasks - 1) / tasks;
    fprintf(f, "#SBATCH --nodes=%d --ntasks=%d --ntasks-per-node=%d", nodes, plan->n_ranks, tasks);
    if (a->room->is_gpu)
        fprintf(f, " --gpus-per-node=%d", tasks);
    else
        fprintf(f, " --mem=%lldM",
                (long long)tasks *
                    ((long long)(memory_total(&plan->rank[plan_neediest(plan)].memory) >> 20) + GRACE_MIB));
    fputc('\n', f);
    if (rate) { /* half as much again; what isn't finished goes on in the next run */
        const long long minutes = (long long)(1.5 * plan_seconds(plan, rate) / 60) + MIN_MINUTES;
        fprintf(f, "#SBATCH --time=%02lld:%02lld:00\n", minutes / 60, minutes % 60);
    }
}

/* Beside what every printed command leaves out: where it goes, which the script has a variable for. */
static char *options_of(const struct answer *a)
{
    const char *leave[32];
    int n = 0;
    while (plan_own_options[n]) {
        leave[n] = plan_own_options[n];
        n++;
    }
    leave[n++] = "out";
    if (a->job->options->stats)
        leave[n++] = "stats";
    leave[n] = NULL;
    return calibration_command(a->options, plan_command_name(a), leave);
}

int plan_write_sbatch(const struct answer *a, const char *path)
{
    int err = OK, n_texts = 0;
    const char *script = calibrate_sbatch, *body = strstr(script, "\nset -eu\n"),
               *out = options_string(a->options, "out"), *stats = a->job->options->stats;
    char *text = NULL, *command = options_of(a), grid[48] = "", memory[BYTES_TEXT], result[BYTES_TEXT];
    size_t size = 0;
    FILE *f = command && body ? open_memstream(&text, &size) : NULL;
    if (!f)
        FAIL(ERR_NOMEM, "a batch file");
    fprintf(f, "#!/bin/sh\n# Made by `glowq plan`: %d rank%s, as %dx%d, %s of memory each, a result of %s.\n",
            a->plan->n_ranks, a->plan->n_ranks == 1 ? "" : "s", a->plan->layout.stages, a->plan->layout.replicas,
            format_bytes((double)memory_total(&a->plan->rank[plan_neediest(a->plan)].memory), memory, sizeof memory),
            format_bytes((double)a->plan->result_bytes, result, sizeof result));
    for (const char *line = script; line < body; line = strchr(line, '\n') + 1)
        if (strncmp(line, "#SBATCH", 7) == 0)
            fprintf(f, "%.*s\n", (int)strcspn(line, "\n"), line);
    print_resources(f, a);
    fputs("[ -n \"${OUT:-}\" ] || OUT=", f);
    shell_word(f, out ? out : "OUT.glowq");
    if (a->plan->n_ranks > 1 && !options_string(a->options, "grid"))
        snprintf(grid, sizeof grid, " --grid %dx%d", a->plan->layout.stages, a->plan->layout.replicas);
    if (stats) {
        fputs("\n[ -n \"${STATS:-}\" ] || STATS=", f);
        shell_word(f, stats);
    }
    options_list(a->options, "text", &n_texts);
    if (n_texts == 0 && !stats && !options_string(a->options, "synthetic"))
        fputs("\n[ $# -gt 0 ] || : \"${TEXT:?calibration text, as in TEXT=FILE sbatch ...}\"", f);
    fprintf(f, "\n[ $# -gt 0 ] || set --%s%s\n", command + strlen("glowq ") + strlen(plan_command_name(a)), grid);
    fputs(body + 1, f);
    if (fclose(f) != 0)
        FAIL(ERR_NOMEM, "a batch file");
    TRY(file_publish(path, text, size));
out:
    free(text);
    free(command);
    return err;
}
