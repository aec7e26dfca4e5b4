/* SPDX-License-Identifier: Apache-2.0
 * glowq doctor: is this machine, or this batch job, fit for what is about to be queued? The checks are doctor.c, doctor_files.c.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "launch/doctor.h"

#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("What is planned:"),
    OPT_STRING("out", 'o', "DIR", "the output folder, made already or not (the current folder)"),
    OPT_STRING("model", 'm', "DIR", "the checkpoint: is it whole, and is there room for its result?"),
    OPT_CHOICE("bits", 'b', "2|3|4|8", "4", "of the result: bits per weight"),
    OPT_INT("group-size", 'g', "N", "128", 0, 1 << 20, "of the result: columns that share a scale"),
    OPT_INT("rank", 'r', "R", "64", 0, 1 << 16, "of the result: rank of the correction"),
    OPT_CHOICE("device", 0, "auto|cpu|cuda", "auto", "cuda: a rank without a GPU fails the check"),
    OPT_END,
};

static const char *const words[] = {"ok", "warn", "FAIL"};

static int print(const struct options *o, const struct comm *comm, const struct checks *checks, int n_failed)
{
    json_t *rows = json_array();
    if (options_flag(o, "json")) {
        for (int i = 0; rows && i < checks->n; i++) {
            const struct check *c = &checks->check[i];
            json_array_append_new(rows, json_pack("{s:s,s:s,s:s,s:s}", "check", c->name, "verdict",
                                                  c->verdict == VERDICT_FAIL ? "fail" : words[c->verdict], "found",
                                                  c->found, "advice", c->advice));
        }
        return out_json(json_pack("{s:i,s:i,s:b,s:o}", "schema_version", JSON_SCHEMA_VERSION, "n_ranks", comm->size,
                                  "fit", n_failed == 0, "checks", rows));
    }
    json_decref(rows);
    for (int i = 0; i < checks->n; i++) {
        const struct check *c = &checks->check[i];
        out_print("%-4s  %-20s  %s\n", words[c->verdict], c->name, c->found);
        if (c->advice[0])
            out_print("%-4s  %-20s  -> %s\n", "", "", c->advice);
    }
    return OK;
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK, n_failed = 0;
    int64_t need = 0;
    const char *out = options_string(o, "out"), *model = options_string(o, "model");
    const struct doctor_settings settings = {.bits = atoi(options_string(o, "bits")),
                                             .group_size = options_int(o, "group-size"),
                                             .rank = options_int(o, "rank")};
    struct checks checks = {0};
    TRY(doctor_machine(comm, options_string(o, "device"), &checks));
    TRY(doctor_network(comm, &checks));
    if (model && comm->rank == 0)
        err = doctor_model(model, &settings, &need, &checks);
    TRY(comm_agree(comm, err));
    TRY(doctor_files(comm, out ? out : ".", need, &checks));
    for (int i = 0; i < checks.n; i++)
        n_failed += checks.check[i].verdict == VERDICT_FAIL;
    TRY(comm_bcast(comm, &n_failed, sizeof n_failed, 0));
    if (comm->rank == 0)
        err = print(o, comm, &checks, n_failed);
    TRY(comm_agree(comm, err));
    if (n_failed > 0) {
        err = ERR_IO;
        if (comm->rank == 0)
            err_set(err, __FILE__, __LINE__, "%d check%s failed", n_failed, n_failed == 1 ? "" : "s");
    }
out:
    return err;
}

const struct command command_doctor = {
    .name = "doctor",
    .summary = "check ranks, network, disks and libraries before a job",
    .about =
        "Looks at what a long job needs, on all ranks that it is started on: MPI, cores, memory, open files, BLAS, "
        "HDF5, "
        "GPUs, NCCL, an all-reduce with checked sums, and the file system of the output folder. One line a check, with "
        "advice; exit code 1 if any of them fails.",
    .examples = "Examples:\n"
                "  glowq doctor\n"
                "  srun --mpi=pmix glowq doctor --model llama --out /scratch/llama.glowq\n"
                "  mpirun -n 4 glowq doctor --device cuda --json\n",
    .options = table,
    .run = run,
};
