/* SPDX-License-Identifier: Apache-2.0
 * glowq plan: what a calibration will take, before it is queued. The figures are calib/forecast.c's, by one process.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "launch/calibration.h"
#include "launch/plan_output.h"
#include "launch/plan_serve.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const double gibi = 1073741824.0;

static const struct option_spec table[] = {
    OPT_HEADING("What to calibrate:"),
    OPT_STRING("model", 'm', "DIR", "Hugging Face folder: config.json and the headers of safetensors are read"),
    OPT_LIST("text", 0, "FILE",
             "for the command that is printed; the plan itself takes as much text as --samples asks for"),
    OPT_STRING("out", 'o', "DIR.glowq", "for the command that is printed"),
    OPT_FLAG("keep-stats", 0, "statistics are kept, as calibrate does it"),
    OPT_STRING("stats", 0, "DIR.glowq", "a folder with kept statistics: plan `glowq solve` with them"),
    OPTIONS_SYNTHETIC,
    OPTIONS_CALIBRATION,
    OPTIONS_GRID,
    OPT_HEADING("Where:"),
    OPT_INT("ranks", 'N', "N", "0", 0, 4096, "ranks to plan for; 0: those of --grid, or the fewest that fit"),
    OPT_INT("max-ranks", 0, "N", "64", 1, 4096, "most to look at when looking for the fewest"),
    OPT_REAL("gpu-memory", 0, "0", 0, 1e6, "GiB of a GPU, each rank having one; 0: ranks compute on CPUs"),
    OPT_REAL("host-memory", 0, "0", 0, 1e9,
             "GiB of a machine, for its ranks that compute on CPUs, or with --gpu-memory for what GPUs spill to it; 0: "
             "what this one has free, for all ranks; with --gpu-memory: nobody knows"),
    OPT_INT("ranks-per-host", 0, "N", "1", 1, 1024, "ranks that share a machine"),
    OPT_INT(
        "steps", 0, "N", "0", 0, 64,
        "blocks (qr-rsvd: power steps) that the solver is taken to make; 0: 4, or what --max-steps or --power allows"),
    OPT_HEADING("Time:"),
    OPT_STRING("profile", 0, "FILE", "how fast the machine is; without one no times are estimated"),
    OPT_STRING("measure", 0, "FILE",
               "measure how fast the machine is, here and under mpirun on all ranks, and write a profile"),
    OPT_REAL("network", 0, "0", 0, 1e6, "GB a second that a rank sends and receives; 0: as --profile says"),
    OPT_HEADING("Serving:"),
    OPT_FLAG("serve", 0,
             "plan `glowq serve`: on how many ranks the model fits, as it is stored and as --bits and --rank would "
             "make it, and for "
             "how many tokens there is room"),
    OPTIONS_CAPACITY,
    OPT_HEADING("Result:"),
    OPT_STRING("sbatch", 0, "FILE", "write a batch file for Slurm"),
    OPTIONS_COMPUTE,
    OPTIONS_MEMORY,
    OPT_END,
};

/* What `glowq solve` isn't asked, as statistics say it. */
static int check_solve(struct options *o)
{
    static const char *const not_asked[] = {"samples", "seq-len", "expert-refit", "text", "keep-stats"};
    const char *stats = options_string(o, "stats");
    for (size_t i = 0; stats && i < sizeof not_asked / sizeof not_asked[0]; i++)
        if (options_find(o, not_asked[i])->origin == ORIGIN_FLAG)
            return options_refuse(o, "--%s goes without --stats %s, which say it", not_asked[i], stats);
    return OK;
}

/* What belongs to serving, and what to calibration alone. */
static int check_serve(struct options *o)
{
    static const char *const serving[] = {"max-sequences", "max-batch-tokens", "max-length", "kv-tokens",
                                          "memory-fraction"};
    static const char *const calibrating[] = {"grid",    "waves",  "stats",   "keep-stats", "text",   "samples",
                                              "seq-len", "sbatch", "profile", "memory",     "scratch"};
    for (size_t i = 0; !options_flag(o, "serve") && i < sizeof serving / sizeof serving[0]; i++)
        if (options_find(o, serving[i])->origin == ORIGIN_FLAG)
            return options_refuse(o, "--%s goes with --serve", serving[i]);
    for (size_t i = 0; options_flag(o, "serve") && i < sizeof calibrating / sizeof calibrating[0]; i++)
        if (options_find(o, calibrating[i])->origin == ORIGIN_FLAG)
            return options_refuse(o, "--%s goes without --serve", calibrating[i]);
    return OK;
}

static int only_measures(const struct options *o)
{
    return options_string(o, "measure") && !options_string(o, "model") && !options_string(o, "synthetic");
}

static int check(struct options *o)
{
    int stages, replicas;
    const char *grid = options_string(o, "grid");
    const int64_t ranks = options_int(o, "ranks");
    if (grid_check(o) != OK || check_solve(o) != OK || check_serve(o) != OK || memory_option_check(o) != OK)
        return ERR_ARG;
    if (grid && ranks > 0 && grid_parse(grid, &stages, &replicas) == OK && (int64_t)stages * replicas != ranks)
        return options_refuse(o, "--grid %s is for %lld ranks, not --ranks %lld", grid, (long long)stages * replicas,
                              (long long)ranks);
    if (options_string(o, "measure") && options_string(o, "profile"))
        return options_refuse(o, "--measure and --profile: give one of them");
    if (options_int(o, "ranks") > 0 && options_find(o, "max-ranks")->origin == ORIGIN_FLAG)
        return options_refuse(o, "--max-ranks goes without --ranks");
    return only_measures(o) ? OK : source_check(o);
}

/* Folder of a path; caller frees. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
}

static int measure(struct comm *comm, const struct options *o, struct profile *profile)
{
    int err = OK;
    const char *path = options_string(o, "measure");
    char *dir = folder_of(path);
    TRY(comm_agree(comm, dir ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "a path")));
    TRY(profile_measure(comm, dir, profile));
    TRY(comm_agree(comm, comm->rank == 0 ? profile_write(profile, path) : OK));
    log_info("wrote %s", path);
out:
    free(dir);
    return err;
}

/* ---- does it fit? ------------------------------------------------------------------------------------------------------------ */

static int find_room(const struct options *o, struct backend *be, struct room *room)
{
    int err = OK;
    const int per_host = (int)options_int(o, "ranks-per-host");
    const double gpu = options_real(o, "gpu-memory"), host = options_real(o, "host-memory");
    size_t total;
    *room = (struct room){.per_host = per_host, .what = "a host of"};
    if (gpu > 0) {
        *room = (struct room){.bytes = (size_t)(gpu * gibi),
                              .per_host = 1,
                              .is_gpu = 1,
                              .gpus_per_host = per_host,
                              .spills_to_host = 1,
                              .host_bytes = (size_t)(host * gibi),
                              .what = "a GPU of"};
    } else if (host > 0) {
        room->bytes = (size_t)(host * gibi);
    } else {
        TRY(be->ops->memory(be, &room->bytes, &total));
        room->per_host = INT_MAX;
        room->what = be->host_memory ? "this machine has free" : "this GPU has free";
        room->spills_to_host = strncmp(be->name, "cuda", 4) == 0; /* as calib/job.c has it */
        if (room->spills_to_host)
            TRY(backend_host_memory(&room->host_bytes, &total));
    }
out:
    return err;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------------- */

static int expected_steps(const struct options *o, const struct solve_params *params)
{
    const int asked = (int)options_int(o, "steps"), usual = 4;
    const int most = params->solver == SOLVER_KRYLOV ? params->max_steps + 1
                     : params->power >= 0            ? params->power + 1
                                                     : 9;
    const int steps = asked > 0 ? asked : params->power >= 0 && params->solver == SOLVER_QR_RSVD ? most : usual;
    return steps < most ? steps : most;
}

/* What ranks compute on: GPUs that aren't here have bf16 activations and long super-blocks (kernels/cuda/state.cu). */
static struct backend planned_backend(const struct options *o, const struct backend *here)
{
    struct backend be = *here;
    if (options_real(o, "gpu-memory") > 0 && here->host_memory) {
        be.act = strcmp(options_string(o, "dtype"), "f32") == 0 ? DT_F32 : DT_BF16;
        be.leaf_tokens = 8192;
        be.host_memory = 0;
    }
    return be;
}

/* The profile's rates, or NULL where it doesn't know one that may be needed. */
static const double *rates_of(const struct options *o, const struct profile *profile)
{
    const int is_alone = options_int(o, "ranks") == 1;
    return profile && (is_alone || profile->rate[RATE_NETWORK] > 0) ? profile->rate : NULL;
}

static int tell(const struct options *o, struct forecast_job *job, const struct room *room,
                const struct profile *profile)
{
    int err = OK;
    struct forecast plan = {0};
    struct grids grids = {0};
    const struct calibrate_options *c = job->options;
    const struct layout layout = {.stages = c->stages, .replicas = c->replicas, .n_waves = c->waves};
    const struct grids_wanted wanted = {.n_ranks = (int)max_i64(options_int(o, "ranks"), c->stages * c->replicas),
                                        .most = (int)options_int(o, "max-ranks"),
                                        .layout = layout,
                                        .rate = rates_of(o, profile)};
    struct answer answer = {.options = o, .job = job, .plan = &plan, .grids = &grids, .room = room, .profile = profile};
    TRY(grids_choose(job, room, &wanted, &grids));
    TRY(forecast_create(job, &grids.row[grids.best].layout, &plan));
    if (options_string(o, "sbatch"))
        TRY(plan_write_sbatch(&answer, options_string(o, "sbatch")));
    if (options_flag(o, "json"))
        TRY(plan_print_json(&answer));
    else
        plan_print(&answer);
out:
    forecast_free(&plan);
    grids_free(&grids);
    return err;
}

static int plan_one(const struct options *o, struct backend *be, const struct profile *profile)
{
    int err = OK;
    struct calibrate_options c = calibration_options(o);
    const struct backend planned = planned_backend(o, be);
    struct model_config config;
    struct weights weights = {0};
    struct room room;
    struct forecast_job job = {
        .options = &c, .config = &config, .weights = &weights, .be = &planned, .steps = expected_steps(o, &c.solve)};
    grid_options(o, &c);
    memory_options(o, &c);
    c.stats = options_string(o, "stats");
    c.keep_stats = options_flag(o, "keep-stats") && !c.stats;
    if (c.stats) /* as open_stats of calib/job.c has it */
        c.expert_refit = REFIT_LAYER;
    TRY(find_room(o, be, &room));
    if (options_flag(o, "serve")) {
        TRY(plan_serve(o, be, &planned, &room));
        goto out;
    }
    TRY(c.synthetic.config ? synthetic_config(&c.synthetic, &config) : config_read(c.model, &config));
    TRY(c.synthetic.config ? weights_open_synthetic(be, &c.synthetic, &config, 0, &weights)
                           : weights_open_checkpoint(be, c.model, &config, &weights));
    if (!c.stats)
        c.seq_len = calibrate_seq_len(&c, &config);
    TRY(forecast_prepare(&job));
    TRY(tell(o, &job, &room, profile));
out:
    weights_close(&weights);
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct backend be = {0};
    struct profile profile = {0};
    const double network = options_real(o, "network") * 1e9;
    if (!only_measures(o))
        TRY(source_find(comm, o, !options_flag(o, "serve")));
    TRY(open_backend(comm, o, &be));
    if (options_string(o, "measure"))
        TRY(measure(comm, o, &profile));
    else if (options_string(o, "profile"))
        TRY(comm_agree(comm, profile_read(options_string(o, "profile"), &profile)));
    if (network > 0)
        profile.rate[RATE_NETWORK] = network;
    if (!only_measures(o))
        TRY(comm_agree(comm, comm->rank == 0 ? plan_one(o, &be, profile.ranks > 0 ? &profile : NULL) : OK));
out:
    backend_close(&be);
    comm->be = NULL;
    return err;
}

const struct command command_plan = {
    .name = "plan",
    .summary = "say what a calibration, or serving, will take: memory, network, disk, time, ranks",
    .about =
        "Plans a calibration from a model's shapes alone: what each rank needs of its memory (the figures by which "
        "calibrate spills second moments, and refuses what doesn't fit), what it reads, sends and writes, the fewest "
        "ranks that fit, and, given how fast the machine is, how long each stage takes. Compares all grids of the "
        "ranks unless --grid names one, "
        "and recommends the fastest. Takes calibrate's own options.",
    .examples = "Examples:\n"
                "  glowq plan --model llama --gpu-memory 80     # the fewest GPUs of 80 GiB\n"
                "  mpirun -n 2 glowq plan --measure machine.json   # how fast 2 ranks are\n"
                "  glowq plan -m llama --ranks 8 --gpu-memory 80 --profile machine.json \\\n"
                "      --sbatch job.sbatch\n"
                "  glowq plan -m llama --grid 2x4 --waves 10 --gpu-memory 80 \\\n"
                "      --profile machine.json\n"
                "  glowq plan -m llama --stats llama.glowq --rank 128   # for `glowq solve`\n"
                "  glowq plan -m llama --serve --gpu-memory 80 --max-length 8192\n"
                "  glowq plan --synthetic examples/shapes/llama-3-70b.json --host-memory 256\n"
                "  glowq plan -m llama --host-memory 64 --memory 6G --scratch /scratch --json\n",
    .options = table,
    .check = check,
    .run = run,
};
