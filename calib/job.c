/* SPDX-License-Identifier: Apache-2.0
 * Job: see job.h. */
#include "calib/job.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "calib/budget.h"
#include "calib/finished.h"
#include "calib/write.h"
#include "model/safetensors.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int weights_open(struct job *job)
{
    const struct calibrate_options *o = job->options;
    return o->synthetic.config ? weights_open_synthetic(job->comm->be, &o->synthetic, &job->config, 0, &job->weights)
                               : weights_open_checkpoint(job->comm->be, o->model, &job->config, &job->weights);
}

int64_t calibrate_seq_len(const struct calibrate_options *o, const struct model_config *config)
{
    if (o->seq_len > 0)
        return o->seq_len;
    if (config->max_position < USUAL_SEQ_LEN)
        log_info("windows of %lld tokens, all that this model takes (else %d; --seq-len says)",
                 (long long)config->max_position, USUAL_SEQ_LEN);
    return min_i64(USUAL_SEQ_LEN, config->max_position);
}

int calibrate_check(const struct calibrate_options *o, const struct model_config *config)
{
    int err = OK;
    if (o->seq_len < 2)
        FAIL(ERR_ARG, "--seq-len %lld: a window has at least 2 tokens", (long long)o->seq_len);
    if (o->seq_len > config->max_position)
        FAIL(ERR_ARG, "--seq-len %lld: this model takes up to %lld positions", (long long)o->seq_len,
             (long long)config->max_position);
    if (o->solve.rank > config->d_model)
        FAIL(ERR_ARG, "--rank %lld is larger than the hidden size %lld", (long long)o->solve.rank,
             (long long)config->d_model);
out:
    return err;
}

static int model_hashes(struct job *job, char weights[65], char config[65])
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    char path[PATH_MAX];
    TRY(weights_fingerprint(&job->weights, weights));
    if (!o->synthetic.config)
        TRY(file_join(path, sizeof path, o->model, "config.json"));
    TRY(sha256_file(o->synthetic.config ? o->synthetic.config : path, config));
out:
    return err;
}

/* Statistics are of this very checkpoint. */
static int weights_match(struct job *job)
{
    int err = OK;
    char weights[65], config[65];
    const struct calibrate_options *o = job->options;
    TRY(model_hashes(job, weights, config));
    if (strcmp(weights, job->origin.weights_sha256) != 0 || strcmp(config, job->origin.config_sha256) != 0)
        FAIL(ERR_FORMAT, "%s/stats/0000.h5: statistics of another checkpoint than %s", o->stats,
             o->model ? o->model : o->synthetic.config);
out:
    return err;
}

/* The text that statistics are of, without its ids, and its settings in place of the options'. */
static int open_stats(struct job *job)
{
    int err = OK;
    struct calibrate_options *o = &job->own;
    struct stats_file *file = NULL;
    const int before = err_quiet(1);
    err = stats_open(o->stats, 0, &job->config, &file);
    err_quiet(before);
    if (err) /* most often of another model: whose hashes can't be compared before its shapes are */
        FAIL(err, "%s (statistics of another model than %s, or damaged)", err_last(),
             o->model ? o->model : o->synthetic.config);
    job->origin = stats_facts(file)->origin;
    const struct stats_origin *from = &job->origin;
    TRY(stats_fingerprint(from, job->stats_fingerprint));
    o->samples = from->samples;
    o->seq_len = from->seq_len;
    o->synthetic.seed = (uint64_t)from->seed;
    o->solve.seed = o->solve.seed == SEED_OF_STATS ? (uint64_t)from->seed : o->solve.seed;
    o->expert_refit = job->config.n_experts > 0 ? REFIT_LAYER : o->expert_refit;
    job->corpus = (struct corpus){.n_sequences = from->n_sequences,
                                  .seq_len = from->seq_len,
                                  .block_sequences = from->block_sequences,
                                  .n_blocks = (from->n_sequences + from->block_sequences - 1) / from->block_sequences};
    memcpy(job->corpus.text_sha256, from->text_sha256, sizeof job->corpus.text_sha256);
    memcpy(job->corpus.ids_sha256, from->ids_sha256, sizeof job->corpus.ids_sha256);
out:
    stats_close(file);
    return err;
}

static int job_open_local(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    TRY(comm_open_self(&job->self, job->world->be));
    TRY(o->synthetic.config ? synthetic_config(&o->synthetic, &job->config) : config_read(o->model, &job->config));
    job->own = *o;
    o = job->options = &job->own;
    if (o->stats)
        TRY(open_stats(job));
    else
        job->own.seq_len = calibrate_seq_len(o, &job->config);
    TRY(weights_open(job));
    TRY(publication_open(&job->publication));
    if (o->n_texts > 0)
        TRY(tokenizer_open(o->model, &job->tokenizer));
    TRY(calibrate_check(o, &job->config));
    if (o->stats)
        TRY(weights_match(job));
    else if (o->n_texts > 0)
        TRY(corpus_read(job->tokenizer, o->texts, o->n_texts, o->samples, o->seq_len, job->comm->be->leaf_tokens,
                        job->config.vocab_size, o->solve.seed, &job->corpus));
    else
        TRY(corpus_synthetic(o->samples, o->seq_len, job->comm->be->leaf_tokens, job->config.vocab_size, o->solve.seed,
                             &job->corpus));
    job->finished = calloc((size_t)job->config.n_layers, 1);
    job->kept = calloc((size_t)job->config.n_layers, 1);
    if (!job->finished || !job->kept)
        FAIL(ERR_NOMEM, "%lld layers", (long long)job->config.n_layers);
    TRY(metric_cases_create(&job->config, &job->cases));
out:
    return err;
}

/* All ranks must compute alike: the same instruction set and BLAS kernels. */
static int agree_on_numerics(struct comm *comm)
{
    int err = OK;
    char first[sizeof comm->be->numerics];
    memcpy(first, comm->be->numerics, sizeof first);
    TRY(comm_bcast(comm, first, sizeof first, 0));
    int local = OK;
    if (strcmp(first, comm->be->numerics) != 0)
        local = err_set(ERR_UNSUPPORTED, __FILE__, __LINE__,
                        "this rank computes with \"%s\", rank 0 with \"%s\": results would depend on who computes what",
                        comm->be->numerics, first);
    TRY(comm_agree(comm, local));
out:
    return err;
}

void calibrate_settings(const struct calibrate_options *o, const struct model_config *config,
                        struct store_settings *settings)
{
    const int share_modules = o->solve.sharing == SHARE_MODULE;
    *settings = (struct store_settings){.bits = o->bits,
                                        .group_size = o->group_size,
                                        .rank = o->solve.rank,
                                        .share_modules = share_modules,
                                        .factor_dtype = o->solve.factor_dtype,
                                        .vector_dtype = DT_F32};
    if (config->n_experts > 0) {
        const struct expert_ranks ranks = budget_ranks(config, share_modules, o->expert_rank, o->solve.rank);
        settings->gate_up_rank = ranks.gate_up;
        settings->down_rank = ranks.down;
    }
}

/* ---- the grid ------------------------------------------------------------------------------------------------------ */

/* Rank 0, which knows where the others are. */
static int choose_grid(struct job *job, const int *host)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    const int n = job->world->size;
    const int64_t n_layers = job->config.n_layers;
    char choices[512];
    job->grid =
        o->stages ? (struct grid){.stages = o->stages, .replicas = o->replicas} : grid_default(host, n, n_layers);
    grid_choices(n, choices, sizeof choices);
    if ((int64_t)job->grid.stages * job->grid.replicas != n)
        FAIL(ERR_ARG, "--grid %dx%d is for %lld ranks, %s %d: give %s", o->stages, o->replicas,
             (long long)o->stages * o->replicas, n == 1 ? "there is" : "there are", n, choices);
    if (o->waves > n_layers)
        FAIL(ERR_ARG, "--waves %lld: the model has %lld layers: give 1 to %lld", (long long)o->waves,
             (long long)n_layers, (long long)n_layers);
    job->n_waves = o->waves ? o->waves : grid_default_waves(&job->grid, n_layers);
out:
    return err;
}

/* The same on every rank, and each stage's ranks among themselves. */
static int open_grid(struct job *job)
{
    int err = OK, local = OK;
    struct comm *world = job->world;
    int *host = malloc((size_t)world->size * sizeof *host);
    if (!host)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "the hosts of %d ranks", world->size);
    TRY(comm_agree(world, local));
    TRY(comm_allgather_each(world, &world->host, sizeof *host, host));
    TRY(comm_agree(world, world->rank == 0 ? choose_grid(job, host) : OK));
    TRY(comm_bcast(world, &job->grid, sizeof job->grid, 0));
    TRY(comm_bcast(world, &job->n_waves, sizeof job->n_waves, 0));
    job->grid = grid_at(job->grid, world->rank);
    if (job->grid.stages == 1)
        goto out;
    TRY(comm_split(world, job->grid.stage, &job->part));
    job->comm = &job->part;
out:
    free(host);
    return err;
}

/* ---- settings ------------------------------------------------------------------------------------------------------ */

static void choose_settings(struct job *job)
{
    calibrate_settings(job->options, &job->config, &job->settings);
    if (job->config.n_experts > 0)
        log_info("layers with experts: rank %lld for gates and ups, %lld for downs",
                 (long long)job->settings.gate_up_rank, (long long)job->settings.down_rank);
}

/* What is observed depends on the model, the text and the arithmetic alone. */
static int job_origin(struct job *job)
{
    int err = OK;
    const struct corpus *c = &job->corpus;
    struct stats_origin *o = &job->origin;
    TRY(model_hashes(job, o->weights_sha256, o->config_sha256));
    memcpy(o->text_sha256, c->text_sha256, sizeof o->text_sha256);
    memcpy(o->ids_sha256, c->ids_sha256, sizeof o->ids_sha256);
    memcpy(o->numerics, job->comm->be->numerics, sizeof o->numerics);
    o->samples = job->options->samples;
    o->n_sequences = c->n_sequences;
    o->seq_len = c->seq_len;
    o->block_sequences = c->block_sequences;
    o->seed = (int64_t)job->options->solve.seed;
    TRY(stats_fingerprint(o, job->stats_fingerprint));
out:
    return err;
}

/* What the results depend on; never ranks, threads, paths or times. The same whether statistics are observed or come from disk,
 * unless another kind of machine observed them. */
static int job_fingerprint(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    const struct solve_params *s = &o->solve;
    char text[2048];
    if (!o->stats)
        TRY(job_origin(job));
    const char *weights_hex = job->origin.weights_sha256, *config_hex = job->origin.config_sha256;
    const int is_foreign = strcmp(job->origin.numerics, job->comm->be->numerics) != 0;
    int n = snprintf(text, sizeof text,
                     "glowq numerics 2\n%s\n%s\n%s\nsequences %lld x %lld, block %lld, panel %d\nbits %d group %lld\n"
                     "solver %d qr %d rank %lld + %lld power %d stop %.17g steps %d damp %d %.17g factors %d exact %d "
                     "seed %llu\n%s\n"
                     "sharing %d experts: rank %lld %lld weights %d refit %d\n%s%s",
                     weights_hex, config_hex, job->corpus.ids_sha256, (long long)job->corpus.n_sequences,
                     (long long)job->corpus.seq_len, (long long)job->corpus.block_sequences, PANEL_ROWS, o->bits,
                     (long long)o->group_size, (int)s->solver, (int)s->qr, (long long)s->rank, (long long)s->oversample,
                     s->power, s->stop, s->max_steps, (int)s->damp, s->alpha, (int)s->factor_dtype, s->exact_energy,
                     (unsigned long long)s->seed, job->comm->be->numerics, (int)s->sharing,
                     (long long)job->settings.gate_up_rank, (long long)job->settings.down_rank, (int)o->expert_weights,
                     (int)o->expert_refit, is_foreign ? "statistics " : "", is_foreign ? job->origin.numerics : "");
    if (n < 0 || (size_t)n >= sizeof text)
        FAIL(ERR_ARG, "the settings' text is too long");
    TRY(sha256_hex(text, (size_t)n, job->fingerprint));
out:
    return err;
}

static int memory_job_of(struct job *job, struct memory_job *memory)
{
    *memory = (struct memory_job){.comm = job->comm,
                                  .grid = job->grid,
                                  .n_waves = job->n_waves,
                                  .options = job->options,
                                  .config = &job->config,
                                  .settings = &job->settings,
                                  .corpus = &job->corpus,
                                  .spills = job->spills};
    return weights_dtype(&job->weights, &(struct tensor_id){PART_WEIGHT, 0, MOD_Q, 0}, &memory->stored);
}

int job_memory(struct job *job, const struct metric_cases *cases, struct memory_needs *needs)
{
    int err = OK;
    struct memory_job memory;
    TRY(memory_job_of(job, &memory));
    TRY(calibrate_memory(&memory, cases, needs));
out:
    return err;
}

/* ---- by which road tokens and experts meet ------------------------------------------------------------------------------- */

static void tell_traffic(const struct job *job, enum dtype stored)
{
    const int size = job->comm->size;
    char text[3][BYTES_TEXT];
    for (int i = SEND_WEIGHTS; i <= SEND_TOKENS; i++)
        format_bytes(
            expert_traffic_all(&job->config, &job->corpus, job->comm->be->act, stored, size, (enum expert_traffic)i),
            text[i], sizeof text[i]);
    if (job->options->expert_traffic == SEND_TOKENS)
        log_info("tokens travel to their experts: about %s a layer (experts' weights to them: %s)", text[SEND_TOKENS],
                 text[SEND_WEIGHTS]);
    else
        log_info("experts' weights travel to the tokens: %s a layer (tokens to them: about %s)", text[SEND_WEIGHTS],
                 text[SEND_TOKENS]);
}

/* Whether every rank has room for it. Collective. */
static int traffic_fits(struct job *job, enum expert_traffic traffic, int *fits)
{
    int err = OK;
    struct memory_needs needs;
    size_t room;
    job->own.expert_traffic = traffic;
    TRY(comm_agree(job->world, job_memory(job, &(struct metric_cases){.any = S_IN_ANY}, &needs)));
    TRY(memory_room(job->world, &needs, 1, &room));
    int64_t is_over = job->options->memory > 0 && memory_total(&needs) > (size_t)job->options->memory;
    TRY(comm_max_i64(job->world, &is_over, 1));
    *fits = room > 0 && !is_over;
out:
    return err;
}

/* Fewer bytes, unless only the other way fits; options say it from now on. Collective. */
static int choose_traffic(struct job *job)
{
    int err = OK, fits = 1, other_fits = 0;
    enum dtype stored;
    if (job->config.n_experts == 0 || job->options->stats)
        goto out;
    TRY(comm_agree(job->world, weights_dtype(&job->weights, &(struct tensor_id){PART_WEIGHT, 0, MOD_Q, 0}, &stored)));
    const enum expert_traffic wanted = job->options->expert_traffic;
    const enum expert_traffic chosen =
        expert_traffic_choose(wanted, &job->config, &job->corpus, job->comm->be->act, stored, job->comm->size);
    const enum expert_traffic other = chosen == SEND_TOKENS ? SEND_WEIGHTS : SEND_TOKENS;
    if (wanted == SEND_AUTO)
        TRY(traffic_fits(job, chosen, &fits));
    if (!fits)
        TRY(traffic_fits(job, other, &other_fits));
    job->own.expert_traffic = other_fits ? other : chosen;
    if (job->comm->size > 1)
        tell_traffic(job, stored);
out:
    return err;
}

/* ---- what doesn't fit --------------------------------------------------------------------------------------------------- */

/* Or to the host's memory, from a GPU. */
static int spills_to_disk(const struct job *job)
{
    return strncmp(job->world->be->name, "cuda", 4) != 0;
}

/* Bytes free where this rank spills to: the disk, or the host's memory. The output may have to be made yet: then its place counts. */
static int spill_room(struct job *job, const char *folder, size_t *room)
{
    int err = OK;
    char path[PATH_MAX];
    struct statvfs fs;
    size_t total;
    if (!spills_to_disk(job)) {
        TRY(backend_host_memory(room, &total));
        goto out;
    }
    if (snprintf(path, sizeof path, "%s", folder) >= (int)sizeof path)
        FAIL(ERR_ARG, "%s: the path is too long", folder);
    while (statvfs(path, &fs) != 0) {
        char *slash = strrchr(path, '/');
        if (job->options->scratch || errno != ENOENT || strcmp(path, ".") == 0 || strcmp(path, "/") == 0)
            FAIL(ERR_IO, "%s: %s", path, strerror(errno));
        if (slash)
            slash[slash == path] = 0;
        else
            strcpy(path, ".");
    }
    *room = (size_t)fs.f_bavail * (size_t)fs.f_frsize;
out:
    return err;
}

/* Sums go outside the memory, if there is room for those of all ranks of this host. Collective over all ranks. */
static int spill(struct job *job, size_t *bytes)
{
    int err = OK;
    struct comm *world = job->world;
    struct memory_job memory;
    const char *folder = job->options->scratch ? job->options->scratch : job->options->out;
    struct {
        int host;
        size_t bytes;
    } mine = {.host = world->host}, *all = calloc((size_t)world->size, sizeof *all);
    size_t together = 0, room = 0;
    char each_text[BYTES_TEXT], together_text[BYTES_TEXT], room_text[BYTES_TEXT];
    int local = all ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "the claims of %d ranks", world->size);
    job->spills = 1;
    local = local ? local : memory_job_of(job, &memory);
    local = local ? local : calibrate_spilled(&memory, &mine.bytes);
    local = local ? local : spill_room(job, folder, &room);
    TRY(comm_agree(world, local));
    TRY(comm_allgather_each(world, &mine, sizeof mine, all));
    for (int p = 0; p < world->size; p++)
        together += all[p].host == mine.host ? all[p].bytes : 0;
    format_bytes((double)mine.bytes, each_text, sizeof each_text);
    format_bytes((double)together, together_text, sizeof together_text);
    format_bytes((double)room, room_text, sizeof room_text);
    if (together > room)
        local = err_set(ERR_FIT, __FILE__, __LINE__,
                        "second moments of %s on each rank don't fit beside the rest in memory; for all of this "
                        "host's, %s, %s has %s free%s",
                        each_text, together_text, spills_to_disk(job) ? folder : "the host's memory", room_text,
                        spills_to_disk(job) ? ": --scratch names another folder" : "");
    TRY(comm_agree(world, local));
    world->be->spill = folder;
    *bytes = mine.bytes;
out:
    free(all);
    return err;
}

/* Refuses what can't fit, before anything is loaded or written; what fits if sums are spilled spills them. */
static int check_memory(struct job *job)
{
    int err = OK;
    struct memory_needs needs = {0}, least;
    char advice[160], text[BYTES_TEXT];
    size_t spilled = 0;
    for (int again = 0; again < 2; again++) {
        TRY(comm_agree(job->world, job_memory(job, &(struct metric_cases){.any = S_IN_ANY}, &needs)));
        TRY(comm_agree(job->world, job_memory(job, &(struct metric_cases){.any = S_IN_F32}, &least)));
        snprintf(advice, sizeof advice,
                 "%smore ranks on more machines, fewer --samples or a shorter --seq-len (%.2f of it would do without "
                 "massive channels)",
                 job->n_waves < grid_default_waves(&job->grid, job->config.n_layers) ? "more --waves, " : "",
                 (double)memory_total(&least) / (double)memory_total(&needs));
        const int before = err_quiet(!again);
        err = memory_check(job->world, &needs, job->options->memory, advice);
        err_quiet(before);
        if (again || err != ERR_FIT)
            goto out;
        err = OK;
        TRY(spill(job, &spilled));
    }
out:
    if (!err && job->spills)
        log_info("second moments don't fit beside the rest in memory: up to %s of each rank go to %s",
                 format_bytes((double)spilled, text, sizeof text),
                 spills_to_disk(job) ? job->world->be->spill : "the host's memory");
    job->planned_bytes = (int64_t)memory_total(&needs);
    return err;
}

/* Rank 0: what is kept has room on the disk, and what is solved from is all there. */
static int check_stats(const struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    struct stats_facts facts;
    struct statvfs fs;
    char needs[BYTES_TEXT], has[BYTES_TEXT];
    double bytes = 0;
    for (int64_t l = 0; o->stats && l < job->config.n_layers; l++)
        if (!stats_are_kept(o->stats, l, &job->config, job->stats_fingerprint))
            FAIL(ERR_FORMAT,
                 "%s/stats/%04lld.h5 is missing, damaged, or of another checkpoint, text or machine than stats/0000.h5",
                 o->stats, (long long)l);
    for (int64_t l = 0; o->keep_stats && l < job->config.n_layers; l++) {
        stats_plan(&job->config, l, &job->origin, 0, &facts);
        bytes += job->kept[l] ? 0 : (double)stats_bytes(&facts);
    }
    if (bytes > 0 && statvfs(o->out, &fs) == 0 && bytes > (double)fs.f_bavail * (double)fs.f_frsize)
        FAIL(ERR_FIT, "%s/stats needs %s, the disk has %s free: calibrate without --keep-stats", o->out,
             format_bytes(bytes, needs, sizeof needs),
             format_bytes((double)fs.f_bavail * (double)fs.f_frsize, has, sizeof has));
out:
    return err;
}

static int remove_finished(const char *dir)
{
    int err = OK;
    static const char *const marks[] = {"manifest.json", "model.h5"};
    char path[PATH_MAX];
    for (int i = 0; i < 2; i++) {
        TRY(file_join(path, sizeof path, dir, marks[i]));
        if (unlink(path) != 0 && file_exists(path))
            FAIL(ERR_IO, "cannot remove %s", path);
    }
out:
    return err;
}

/* What is missing of the output, of this fingerprint. */
static int find_layers(struct job *job, int *has_head, int *is_whole)
{
    int err = OK;
    const char *dir = job->options->out;
    enum store_state state;
    *is_whole = 1;
    for (int64_t l = 0; l < job->config.n_layers; l++) {
        TRY(store_layer_state(dir, l, job->fingerprint, &state));
        if (state == STORE_FOREIGN)
            FAIL(ERR_ARG,
                 "%s holds layers of other settings, another text or another checkpoint: give --overwrite to "
                 "replace them, or another --out",
                 dir);
        job->finished[l] = state == STORE_DONE;
        job->kept[l] = stats_are_kept(dir, l, &job->config, job->stats_fingerprint);
        *is_whole = *is_whole && job->finished[l];
    }
    TRY(store_head_state(dir, job->fingerprint, &state));
    *has_head = state == STORE_DONE;
    *is_whole = *is_whole && *has_head;
out:
    return err;
}

/* Of these very settings: all that is left to do is to say so, unless a file is missing or damaged since. */
static int take_finished(struct job *job, int is_whole)
{
    int err = OK, as_listed;
    const char *dir = job->options->out;
    for (int64_t l = 0; job->options->keep_stats && l < job->config.n_layers; l++)
        if (!job->kept[l])
            FAIL(
                ERR_ARG,
                "%s is finished, without the statistics of layer %lld that are to be kept: give --overwrite to make it "
                "again, or another --out",
                dir, (long long)l);
    TRY(finished_check(dir, &as_listed));
    job->was_finished = is_whole && as_listed;
    if (!job->was_finished) {
        log_warn("%s was finished: what is missing or damaged is made again", dir);
        TRY(remove_finished(dir));
    }
out:
    return err;
}

/* Rank 0: takes the output folder and finds out what an earlier run left there. */
static int output_open(struct job *job, int *has_head)
{
    int err = OK, is_finished = 0, is_whole;
    const struct calibrate_options *o = job->options;
    if (checkpoint_is_in(o->out)) /* it would get a config.json and tokenizer of ours */
        FAIL(ERR_ARG, "--out %s: a checkpoint's folder; give one of its own to the result", o->out);
    if (!o->overwrite) /* before a folder that isn't ours gets anything of ours */
        TRY(finished_read(o, &job->config, &job->corpus, job->fingerprint, &is_finished));
    TRY(store_lock(o->out, &job->lock));
    if (o->overwrite) {
        TRY(remove_finished(o->out));
        TRY(store_remove_layers(o->out, job->config.n_layers)); /* the others are replaced one by one */
        goto out;
    }
    TRY(finished_read(o, &job->config, &job->corpus, job->fingerprint,
                      &is_finished)); /* as it is now that it is locked */
    TRY(find_layers(job, has_head, &is_whole));
    if (is_finished)
        TRY(take_finished(job, is_whole));
out:
    return err;
}

/* Room for hidden states, and for those on their way. Rank-local. */
static int open_forward(struct job *job)
{
    int err = OK;
    const struct corpus *c = &job->corpus;
    TRY(forward_create(job->comm, &job->config, c, job->grid.stage == 0, &job->forward));
    if (job->config.n_experts > 0 && job->options->expert_traffic == SEND_TOKENS)
        TRY(forward_send_tokens(&job->forward));
    TRY(relay_create(job->world, &job->grid, &job->forward, &job->relay));
out:
    return err;
}

int job_open(struct job *job)
{
    int err = OK, local = OK, has_head = 0;
    struct comm *world = job->world;
    const int was_quiet = err_quiet(1);
    err = job_open_local(job);
    TRY(comm_agree_alike(world, err, was_quiet));
    TRY(agree_on_numerics(world));
    TRY(open_grid(job));
    prefetch_open(job->comm, &job->config, &job->weights, &job->prefetch);
    choose_settings(job);
    TRY(choose_traffic(job));
    TRY(check_memory(job));
    TRY(comm_agree(world, job_fingerprint(job)));
    if (world->rank == 0)
        local = output_open(job, &has_head);
    if (world->rank == 0 && !local)
        local = check_stats(job);
    TRY(comm_agree(world, local));
    TRY(comm_bcast(world, &job->was_finished, sizeof job->was_finished, 0));
    for (int64_t l = 0; l < job->config.n_layers && !job->options->keep_stats; l++)
        job->kept[l] = 1;
    TRY(comm_bcast(world, job->finished, (size_t)job->config.n_layers, 0));
    TRY(comm_bcast(world, job->kept, (size_t)job->config.n_layers, 0));
    if (world->rank == 0 && !has_head)
        local = write_head(job->options->out, &job->weights, job->fingerprint);
    TRY(comm_agree(world, local));
    TRY(comm_agree(world, facts_create(world, job->comm, job->options, &job->config, &job->corpus, &job->weights,
                                       job->fingerprint, &job->facts)));
    job->facts.planned_bytes = job->planned_bytes;
    if (!job->options->stats && !job->was_finished)
        TRY(comm_agree(world, open_forward(job)));
out:
    return err;
}

void job_close(struct job *job)
{
    relay_free(&job->relay);
    forward_free(&job->forward);
    facts_free(&job->facts);
    corpus_free(&job->corpus);
    publication_close(&job->publication);
    prefetch_close(&job->prefetch);
    weights_close(&job->weights);
    tokenizer_close(job->tokenizer);
    free(job->finished);
    free(job->kept);
    metric_cases_free(&job->cases);
    comm_close(&job->part);
    comm_close(&job->self);
    if (job->lock >= 0)
        store_unlock(job->options->out, job->lock);
}
