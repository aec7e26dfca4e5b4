/* SPDX-License-Identifier: Apache-2.0
 * Which grids fit: see plan_grids.h. */
#include "launch/plan_grids.h"

#include "base/err.h"

#include <limits.h>
#include <stdlib.h>

static const double gibi = 1073741824.0;

double plan_seconds(const struct forecast *plan, const double *rate)
{
    double s = 0;
    for (int i = 0; i < N_STAGES; i++)
        s += forecast_stage_s(plan, (enum stage)i, rate);
    return s;
}

int plan_neediest(const struct forecast *plan)
{
    int most = 0;
    for (int p = 1; p < plan->n_ranks; p++)
        if (memory_total(&plan->rank[p].memory) > memory_total(&plan->rank[most].memory))
            most = p;
    return most;
}

int64_t plan_spilled(const struct forecast *plan, int64_t *most)
{
    int64_t all = 0;
    *most = 0;
    for (int p = 0; p < plan->n_ranks; p++) {
        all += plan->rank[p].spilled_bytes;
        *most = max_i64(*most, plan->rank[p].spilled_bytes);
    }
    return all;
}

/* ---- does it fit? ------------------------------------------------------------------------------------------------------------ */

static int ranks_of(const struct layout *layout)
{
    return layout->stages * layout->replicas;
}

/* The machine whose ranks need most: what they need together, and its neediest rank. */
static size_t fullest(const struct memory_needs *needs, int n_ranks, const struct room *room, int *rank, int *sharers)
{
    size_t most = 0;
    for (int first = 0; first < n_ranks; first += min_i64(room->per_host, n_ranks - first)) {
        const int n = (int)min_i64(room->per_host, n_ranks - first);
        size_t together = 0;
        int neediest = first;
        for (int p = first; p < first + n; p++) {
            together += memory_total(&needs[p]);
            neediest = memory_total(&needs[p]) > memory_total(&needs[neediest]) ? p : neediest;
        }
        if (together > most) {
            most = together;
            *rank = neediest;
            *sharers = n;
        }
    }
    return most;
}

/* The next grid of so many ranks behind one with `stages` stages (0: the first); 0 where there is none: a stage has a layer at least. */
static int next_layout(const struct forecast_job *job, const struct grids_wanted *wanted, int n_ranks,
                       struct layout *layout)
{
    const int64_t most = min_i64(n_ranks, job->config->n_layers);
    int stages = layout->stages + 1;
    if (wanted->layout.stages > 0) {
        const int is_first = layout->stages == 0;
        *layout = wanted->layout;
        return is_first;
    }
    while (stages <= most && n_ranks % stages != 0)
        stages++;
    *layout = (struct layout){.stages = stages, .replicas = n_ranks / stages, .n_waves = wanted->layout.n_waves};
    return stages <= most;
}

/* The most that ranks of a machine spill together, and the rank of all that spills most. */
static int find_spilled(const struct forecast_job *job, const struct room *room, const struct layout *layout,
                        size_t *together, size_t *most)
{
    int err = OK;
    const int per_host = room->is_gpu ? room->gpus_per_host : room->per_host;
    size_t bytes, host = 0;
    *together = *most = 0;
    for (int p = 0; p < ranks_of(layout); p++) {
        TRY(forecast_spilled(job, layout, p, &bytes));
        host = (p % per_host ? host : 0) + bytes;
        *together = host > *together ? host : *together;
        *most = bytes > *most ? bytes : *most;
    }
out:
    return err;
}

/* The neediest rank that --memory doesn't allow what it needs; -1: there is none. */
static int over_limit(const struct forecast_job *job, const struct memory_needs *needs, int n_ranks)
{
    int most = -1;
    for (int p = 0; p < n_ranks && job->options->memory > 0; p++)
        if (memory_total(&needs[p]) > job->options->memory &&
            (most < 0 || memory_total(&needs[p]) > memory_total(&needs[most])))
            most = p;
    return most;
}

/* Whether a grid's ranks have room, as layout has it; and the memory of those on the fullest machine. needs: of each rank. */
static int has_room(const struct forecast_job *job, const struct room *room, const struct layout *layout,
                    struct memory_needs *needs, size_t *bytes, int *fits)
{
    int err = OK, rank, sharers;
    size_t spilled, most;
    TRY(forecast_memory(job, layout, needs));
    *bytes = fullest(needs, ranks_of(layout), room, &rank, &sharers);
    *fits = *bytes <= room->bytes && over_limit(job, needs, ranks_of(layout)) < 0;
    if (*fits && layout->spills && room->host_bytes > 0) {
        TRY(find_spilled(job, room, layout, &spilled, &most));
        *fits = spilled <= room->host_bytes;
    }
out:
    return err;
}

/* As calibrate makes a grid fit: where it chooses what travels in layers with experts it takes the less, unless only the other fits;
 * where neither does, second moments are spilled. What doesn't fit is told as it would be then. */
static int find_fit(const struct forecast_job *job, const struct room *room, struct memory_needs *needs,
                    struct layout *layout, size_t *bytes, int *fits)
{
    int err = OK;
    const int is_free = job->options->expert_traffic == SEND_AUTO && job->config->n_experts > 0;
    struct layout other = *layout;
    layout->traffic = SEND_AUTO;
    layout->spills = other.spills = 0;
    other.traffic = forecast_expert_traffic(job, layout) == SEND_TOKENS ? SEND_WEIGHTS : SEND_TOKENS;
    TRY(has_room(job, room, layout, needs, bytes, fits));
    if (!*fits && is_free) {
        TRY(has_room(job, room, &other, needs, bytes, fits));
        if (*fits)
            *layout = other;
    }
    if (!*fits) {
        layout->spills = 1;
        TRY(has_room(job, room, layout, needs, bytes, fits));
    }
out:
    return err;
}

/* The leanest grid of so many ranks; needs [n_ranks]: its ranks'. */
static int find_leanest(const struct forecast_job *job, const struct room *room, const struct grids_wanted *wanted,
                        int n_ranks, struct memory_needs *needs, struct layout *leanest)
{
    int err = OK, fits;
    struct layout layout = {0};
    size_t most, bytes = SIZE_MAX;
    while (next_layout(job, wanted, n_ranks, &layout)) {
        TRY(find_fit(job, room, needs, &layout, &most, &fits));
        if (most < bytes) {
            bytes = most;
            *leanest = layout;
        }
    }
    TRY(forecast_memory(job, leanest, needs));
out:
    return err;
}

/* The fewest ranks, at most `most`, that fit on some grid without spilling, or if none do with that. needs [most] is working memory. */
static int find_fewest(const struct forecast_job *job, const struct room *room, const struct grids_wanted *wanted,
                       int most, struct memory_needs *needs, struct grids *grids)
{
    int err = OK, fits, whole = 0, spilled = 0;
    struct grids_wanted any = *wanted;
    size_t bytes;
    any.layout.stages = any.layout.replicas = 0;
    for (int n = 1; n <= most && !whole; n++) {
        struct layout layout = {0};
        while (!whole && next_layout(job, &any, n, &layout)) {
            TRY(find_fit(job, room, needs, &layout, &bytes, &fits));
            if (fits && !layout.spills)
                whole = n;
            else if (fits && !spilled)
                spilled = n;
        }
    }
    grids->fewest = whole ? whole : spilled;
    grids->fewest_spills = !whole && spilled;
out:
    return err;
}

/* ERR_FIT, with what is missing and what would do. fewest: that many ranks fit; 0: no number up to most does. */
static int refuse(const struct forecast_job *job, const struct memory_needs *needs, const struct layout *layout,
                  const struct room *room, int fewest, int most)
{
    int err = OK;
    const struct grid shape = {.stages = layout->stages, .replicas = layout->replicas};
    const int64_t usual = grid_default_waves(&shape, job->config->n_layers);
    const char *waves = layout->n_waves > 0 && layout->n_waves < usual ? "more --waves, or " : "";
    char what[512], advice[256], together[64] = "", grid[32] = "";
    int rank = 0, sharers = 1;
    const int n_ranks = ranks_of(layout), over = over_limit(job, needs, n_ranks);
    const size_t all = fullest(needs, n_ranks, room, &rank, &sharers);
    size_t host, each;
    rank = over < 0 ? rank : over;
    sharers = over < 0 ? sharers : 1;
    const int is_small = (over < 0 ? all : memory_total(&needs[rank])) < (size_t)1 << 30;
    const double unit = is_small ? 1048576.0 : gibi;
    memory_describe(&needs[rank], is_small, what, sizeof what);
    if (layout->stages > 1)
        snprintf(grid, sizeof grid, " as %dx%d", layout->stages, layout->replicas);
    if (sharers > 1)
        snprintf(together, sizeof together, " and %d ranks together %.2f %s", sharers, (double)all / unit,
                 is_small ? "MiB" : "GiB");
    if (fewest > 0)
        snprintf(advice, sizeof advice, "try %s%d rank%s", waves, fewest, fewest == 1 ? "" : "s");
    else
        snprintf(advice, sizeof advice,
                 "up to %d ranks none fits: try %sfewer --samples, a shorter --seq-len or more memory%s", most, waves,
                 room->per_host == INT_MAX ? " (--host-memory, --gpu-memory: of the machines planned for)" : "");
    if (over < 0 && all <= room->bytes) { /* what is spilled then, which the host has no room for */
        TRY(find_spilled(job, room, layout, &host, &each));
        FAIL(ERR_FIT,
             "second moments of up to %.2f GiB on each of %d ranks%s don't fit beside the rest in memory; all of a "
             "host's, %.2f GiB, don't fit in its own %.2f GiB either: %s",
             (double)each / gibi, n_ranks, grid, (double)host / gibi, (double)room->host_bytes / gibi, advice);
    }
    FAIL(ERR_FIT, "rank %d of %d%s needs %s%s, %s %.2f %s: %s", rank, n_ranks, grid, what, together,
         over < 0 ? room->what : "--memory allows", (double)(over < 0 ? room->bytes : job->options->memory) / unit,
         is_small ? "MiB" : "GiB", advice);
out:
    return err;
}

/* ---- which is best? ---------------------------------------------------------------------------------------------------------- */

static int look_at(const struct forecast_job *job, const struct room *room, struct layout *layout, const double *rate,
                   struct grid_row *row)
{
    int err = OK, fits;
    struct forecast plan = {0};
    size_t bytes;
    struct memory_needs *needs = calloc((size_t)ranks_of(layout), sizeof *needs);
    if (!needs)
        FAIL(ERR_NOMEM, "a plan for %d ranks", ranks_of(layout));
    TRY(find_fit(job, room, needs, layout, &bytes, &fits));
    TRY(forecast_create(job, layout, &plan));
    *row = (struct grid_row){.layout = plan.layout, .seconds = rate ? plan_seconds(&plan, rate) : -1};
    for (int p = 0; p < plan.n_ranks; p++)
        row->network = max_i64(row->network, max_i64(forecast_sent(&plan, p), forecast_received(&plan, p)));
    row->memory = memory_total(&plan.rank[plan_neediest(&plan)].memory);
    row->fits = fits;
out:
    forecast_free(&plan);
    free(needs);
    return err;
}

/* What calibrate does unless it is told: a stage a host, where hosts have equally many ranks. */
static int usual_stages(const struct forecast_job *job, const struct room *room, int n_ranks)
{
    const int each = (int)min_i64(room->is_gpu ? room->gpus_per_host : room->per_host, n_ranks);
    return n_ranks % each == 0 && n_ranks / each <= job->config->n_layers ? n_ranks / each : 1;
}

/* -1: none fits. */
static int best_of(const struct grids *grids, int usual)
{
    int best = -1;
    for (int i = 0; i < grids->n; i++) {
        const struct grid_row *row = &grids->row[i], *before = best < 0 ? NULL : &grids->row[best];
        const int is_better = before && row->layout.spills != before->layout.spills ? before->layout.spills
                              : row->seconds >= 0                        ? before && row->seconds < before->seconds
                              : before && before->layout.stages == usual ? 0
                              : row->layout.stages == usual              ? 1
                                                                         : before && row->memory < before->memory;
        if (row->fits && (!before || is_better))
            best = i;
    }
    return best;
}

int grids_choose(const struct forecast_job *job, const struct room *room, const struct grids_wanted *wanted,
                 struct grids *grids)
{
    int err = OK, n_ranks;
    const int most = (int)max_i64(wanted->most, wanted->n_ranks);
    struct memory_needs *needs = calloc((size_t)most, sizeof *needs);
    struct layout layout = {0};
    *grids = (struct grids){.best = -1};
    if (!needs || !(grids->row = calloc((size_t)most, sizeof *grids->row)))
        FAIL(ERR_NOMEM, "plans for %d ranks", most);
    TRY(find_fewest(job, room, wanted, most, needs, grids));
    n_ranks = wanted->n_ranks > 0 ? wanted->n_ranks : grids->fewest;
    while (n_ranks > 0 && next_layout(job, wanted, n_ranks, &layout))
        TRY(look_at(job, room, &layout, wanted->rate, &grids->row[grids->n++]));
    grids->best = best_of(grids, usual_stages(job, room, (int)max_i64(n_ranks, 1)));
    if (grids->best < 0) {
        TRY(find_leanest(job, room, wanted, n_ranks > 0 ? n_ranks : most, needs, &layout));
        err = refuse(job, needs, &layout, room, grids->fewest, most);
    }
out:
    free(needs);
    if (err)
        grids_free(grids);
    return err;
}

void grids_free(struct grids *grids)
{
    free(grids->row);
    *grids = (struct grids){0};
}
