/* SPDX-License-Identifier: Apache-2.0
 * What `glowq plan` tells: see plan_output.h. */
#include "launch/plan_output.h"

#include "base/err.h"
#include "launch/calibration.h"

#include <stdlib.h>
#include <string.h>

enum { LISTED_RANKS = 16 };

const double *plan_rates(const struct answer *a)
{
    if (!a->profile || (a->plan->n_ranks > 1 && a->profile->rate[RATE_NETWORK] <= 0))
        return NULL;
    return a->profile->rate;
}

const char *const plan_own_options[] = {"ranks", "max-ranks", "gpu-memory", "host-memory", "ranks-per-host",
                                        "steps", "profile",   "measure",    "network",     "sbatch",
                                        "json",  "quiet",     NULL};

const char *plan_command_name(const struct answer *a)
{
    return a->job->options->stats ? "solve" : "calibrate";
}

/* "mpirun -n 4 glowq calibrate ..." Caller frees. */
static char *command_of(const struct answer *a)
{
    char *text = NULL, *command = calibration_command(a->options, plan_command_name(a), plan_own_options);
    size_t size = 0;
    FILE *f = command ? open_memstream(&text, &size) : NULL;
    int n_texts = 0;
    if (!f)
        goto out;
    options_list(a->options, "text", &n_texts);
    if (a->plan->n_ranks > 1)
        fprintf(f, "mpirun -n %d ", a->plan->n_ranks);
    fputs(command, f);
    if (a->plan->n_ranks > 1 && !options_string(a->options, "grid"))
        fprintf(f, " --grid %dx%d", a->plan->layout.stages, a->plan->layout.replicas);
    if (n_texts == 0 && !options_string(a->options, "synthetic") && !a->job->options->stats)
        fputs(" --text TEXT", f);
    if (!options_string(a->options, "out"))
        fputs(" --out OUT.glowq", f);
    if (fclose(f) != 0) {
        free(text);
        text = NULL;
    }
out:
    free(command);
    return text;
}

/* ---- table ----------------------------------------------------------------------------------------------------------------------- */

static void print_memory(const struct forecast *plan)
{
    const int most = plan_neediest(plan);
    const struct memory_needs *needs = &plan->rank[most].memory;
    const int is_small = memory_total(needs) < (size_t)1 << 30;
    const double unit = is_small ? 1048576.0 : 1073741824.0;
    out_print("memory          of rank %d, which needs most\n", most);
    for (int i = 0; i < needs->n; i++)
        out_print("  %-20s %10.2f %s\n", needs->item[i].name, (double)needs->item[i].bytes / unit,
                  is_small ? "MiB" : "GiB");
    out_print("  %-20s %10.2f %s; %.2f where no input has a massive channel\n", "together",
              (double)memory_total(needs) / unit, is_small ? "MiB" : "GiB",
              (double)memory_total(&plan->rank[most].least) / unit);
}

/* What doesn't fit beside that, and where it goes. */
static void print_spilled(const struct answer *a)
{
    char each[32], all[32];
    int64_t most;
    format_bytes((double)plan_spilled(a->plan, &most), all, sizeof all);
    format_bytes((double)most, each, sizeof each);
    if (!a->plan->layout.spills)
        return;
    out_print("spilled         second moments of up to %s a rank go to ", each);
    if (a->room->spills_to_host)
        out_print("the host's memory");
    else
        out_print("disk, in %s",
                  a->job->options->scratch ? a->job->options->scratch : "the result's folder (--scratch)");
    out_print(", %s in all%s\n", all, plan_rates(a) ? "; times don't count that" : "");
}

static void print_ranks(const struct forecast *plan)
{
    char memory[32], reads[32], sent[32], received[32], writes[32];
    int64_t all[4] = {0};
    out_print("%-15s %12s %12s %12s %12s %12s\n", "rank", "memory", "reads", "sends", "receives", "writes");
    for (int p = 0; p < plan->n_ranks; p++) {
        const struct forecast_rank *r = &plan->rank[p];
        all[0] += r->read_bytes;
        all[1] += forecast_sent(plan, p);
        all[2] += forecast_received(plan, p);
        all[3] += r->write_bytes;
        if (p >= LISTED_RANKS)
            continue;
        format_bytes((double)memory_total(&r->memory), memory, sizeof memory);
        format_bytes((double)r->read_bytes, reads, sizeof reads);
        format_bytes((double)forecast_sent(plan, p), sent, sizeof sent);
        format_bytes((double)forecast_received(plan, p), received, sizeof received);
        format_bytes((double)r->write_bytes, writes, sizeof writes);
        out_print("  %-13d %12s %12s %12s %12s %12s\n", p, memory, reads, sent, received, writes);
    }
    if (plan->n_ranks > LISTED_RANKS)
        out_print("  ..            and %d more (--json lists them)\n", plan->n_ranks - LISTED_RANKS);
    format_bytes((double)all[0], reads, sizeof reads);
    format_bytes((double)all[1], sent, sizeof sent);
    format_bytes((double)all[2], received, sizeof received);
    format_bytes((double)all[3], writes, sizeof writes);
    out_print("  %-13s %12s %12s %12s %12s %12s\n", "all", "", reads, sent, received, writes);
}

/* The busiest rank of every stage. */
static void print_stages(const struct answer *a)
{
    const struct forecast *plan = a->plan;
    const double *rate = plan_rates(a);
    char bytes[32];
    const int is_empty =
        !rate && plan->n_ranks == 1; /* of bytes that one rank doesn't send, and of times that nobody knows */
    if (!is_empty)
        out_print(rate ? "%-15s %12s %12s\n" : "%-15s %12s\n", "stage", "network", "time");
    for (int i = 0; !is_empty && i < N_STAGES; i++) {
        int64_t most = 0;
        for (int p = 0; p < plan->n_ranks; p++)
            most = max_i64(most, max_i64(forecast_stage_sent(plan, p, (enum stage)i),
                                         forecast_stage_received(plan, p, (enum stage)i)));
        format_bytes((double)most, bytes, sizeof bytes);
        out_print("  %-13s %12s", stage_name((enum stage)i), bytes);
        if (rate)
            out_print(" %10.1f s", forecast_stage_s(plan, (enum stage)i, rate));
        out_print("\n");
    }
    if (rate)
        out_print("  %-13s %12s %10.1f s  at the rates of %s\n", "together", "", plan_seconds(plan, rate),
                  a->profile->device);
    else if (a->profile)
        out_print(
            "times           not estimated: the profile knows no network; measure under mpirun, or give --network\n");
    else
        out_print("times           not estimated: give --profile FILE (made by --measure FILE)\n");
}

/* All that were looked at, where there is a choice. */
static void print_grids(const struct grids *grids)
{
    char memory[32], network[32];
    if (grids->n < 2)
        return;
    out_print("%-15s %12s %12s %12s %12s\n", "grid", "waves", "memory", "network", "time");
    for (int i = 0; i < grids->n; i++) {
        const struct grid_row *row = &grids->row[i];
        format_bytes((double)row->memory, memory, sizeof memory);
        format_bytes((double)row->network, network, sizeof network);
        out_print("  %4dx%-8d %12lld %12s %12s", row->layout.stages, row->layout.replicas,
                  (long long)row->layout.n_waves, memory, network);
        if (row->seconds >= 0)
            out_print(" %10.1f s", row->seconds);
        else
            out_print(" %12s", "");
        out_print("%s\n", i == grids->best     ? "  planned below"
                          : !row->fits         ? "  doesn't fit"
                          : row->layout.spills ? "  spills"
                                               : "");
    }
}

void plan_room_text(const struct room *room, char *out, size_t size)
{
    snprintf(out, size, "%s %.4g GiB", room->what, (double)room->bytes / 1073741824.0);
}

void plan_print(const struct answer *a)
{
    const struct calibrate_options *c = a->job->options;
    const struct model_config *config = a->job->config;
    const int n = a->plan->n_ranks;
    char result[32], room[64], hidden[32], stats[32], allowed[32], spilled[32];
    int64_t most;
    char *command = command_of(a);
    format_bytes((double)a->plan->result_bytes, result, sizeof result);
    plan_room_text(a->room, room, sizeof room);
    format_bytes((double)a->plan->hidden_bytes, hidden, sizeof hidden);
    format_bytes((double)a->plan->stats_bytes, stats, sizeof stats);
    format_bytes((double)c->memory, allowed, sizeof allowed);
    format_bytes((double)plan_spilled(a->plan, &most), spilled, sizeof spilled);
    out_print("model           %s: %s, %lld layers\n", source_name(a->options), config->family,
              (long long)config->n_layers);
    if (c->stats)
        out_print("solve           from %s/stats, %d bits, rank %lld", c->stats, c->bits, (long long)c->solve.rank);
    else
        out_print("calibration     %lld x %lld tokens, %d bits, rank %lld", (long long)c->samples,
                  (long long)c->seq_len, c->bits, (long long)c->solve.rank);
    if (config->n_experts > 0)
        out_print(" (experts %lld and %lld)", (long long)a->job->settings.gate_up_rank,
                  (long long)a->job->settings.down_rank);
    out_print(", %d solver steps\n", a->job->steps);
    out_print("ranks           %d, as %dx%d; %d rank%s would fit%s: %s", n, a->plan->layout.stages,
              a->plan->layout.replicas, a->grids->fewest, a->grids->fewest == 1 ? "" : "s",
              a->grids->fewest_spills ? " if second moments are spilled" : "", room);
    if (c->memory > 0)
        out_print(", a rank may take %s", allowed);
    out_print("\n");
    if (config->n_experts > 0 && !c->stats && a->plan->layout.replicas > 1)
        out_print("experts         %s\n", a->plan->layout.traffic == SEND_TOKENS
                                              ? "tokens travel to them: about as many bytes as below, by the router"
                                              : "their weights travel to the tokens");
    print_grids(a->grids);
    print_memory(a->plan);
    print_spilled(a);
    print_ranks(a->plan);
    print_stages(a);
    out_print("disk            %s of result", result);
    if (c->keep_stats)
        out_print(", %s of statistics", stats);
    if (a->plan->layout.spills && !a->room->spills_to_host)
        out_print(", %s of second moments while it runs", spilled);
    if (!c->stats)
        out_print("; beside it until it is finished at most %s of hidden states (--hidden-every)", hidden);
    if (!c->stats && !c->keep_stats)
        out_print(";\n                --keep-stats would add %s", stats);
    out_print("\n");
    out_print("run             %s\n", command ? command : "");
    free(command);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------------------ */

static json_t *rank_json(const struct forecast *plan, int p)
{
    const struct forecast_rank *r = &plan->rank[p];
    json_t *items = json_object(), *stages = json_object();
    for (int i = 0; i < r->memory.n; i++)
        json_object_set_new(items, r->memory.item[i].name, json_integer((json_int_t)r->memory.item[i].bytes));
    for (int i = 0; i < N_STAGES; i++)
        json_object_set_new(stages, stage_name((enum stage)i),
                            json_pack("{s:I, s:I}", "sent", (json_int_t)forecast_stage_sent(plan, p, (enum stage)i),
                                      "received", (json_int_t)forecast_stage_received(plan, p, (enum stage)i)));
    return json_pack("{s:i, s:I, s:o, s:I, s:I, s:I, s:I, s:{s:I, s:I, s:o}}", "rank", p, "memory_bytes",
                     (json_int_t)memory_total(&r->memory), "memory", items, "memory_f32_bytes",
                     (json_int_t)memory_total(&r->least), "spilled_bytes", (json_int_t)r->spilled_bytes, "read_bytes",
                     (json_int_t)r->read_bytes, "write_bytes", (json_int_t)r->write_bytes, "network", "sent_bytes",
                     (json_int_t)forecast_sent(plan, p), "received_bytes", (json_int_t)forecast_received(plan, p),
                     "stages", stages);
}

static json_t *grids_json(const struct grids *grids)
{
    json_t *list = json_array();
    char name[32];
    for (int i = 0; i < grids->n; i++) {
        const struct grid_row *row = &grids->row[i];
        snprintf(name, sizeof name, "%dx%d", row->layout.stages, row->layout.replicas);
        json_array_append_new(list, json_pack("{s:s, s:I, s:b, s:b, s:I, s:I, s:o}", "grid", name, "waves",
                                              (json_int_t)row->layout.n_waves, "fits", row->fits, "spills",
                                              row->layout.spills, "memory_bytes", (json_int_t)row->memory,
                                              "network_bytes", (json_int_t)row->network, "seconds",
                                              row->seconds >= 0 ? json_number(row->seconds) : json_null()));
    }
    return list;
}

static json_t *times_json(const struct answer *a)
{
    const double *rate = plan_rates(a);
    json_t *stages = json_object();
    if (!rate) {
        json_decref(stages);
        return json_null();
    }
    for (int i = 0; i < N_STAGES; i++)
        json_object_set_new(stages, stage_name((enum stage)i),
                            json_number(forecast_stage_s(a->plan, (enum stage)i, rate)));
    return json_pack("{s:s, s:o}", "profile", a->profile->device, "stages", stages);
}

int plan_print_json(const struct answer *a)
{
    const struct forecast *plan = a->plan;
    const struct calibrate_options *c = a->job->options;
    const double *rate = plan_rates(a);
    json_t *ranks = json_array();
    char *command = command_of(a);
    int64_t reads = 0, most;
    const int64_t spilled = plan_spilled(plan, &most);
    for (int p = 0; p < plan->n_ranks; p++) {
        json_array_append_new(ranks, rank_json(plan, p));
        reads += plan->rank[p].read_bytes;
    }
    json_t *json =
        json_pack("{s:i, s:s, s:i, s:i, s:i, s:i, s:I, s:o, s:I, s:i, s:I, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:I, "
                  "s:o, s:o, s:o, s:s}",
                  "schema_version", JSON_SCHEMA_VERSION, "model", source_name(a->options), "n_ranks", plan->n_ranks,
                  "fewest_ranks", a->grids->fewest, "stages", plan->layout.stages, "replicas", plan->layout.replicas,
                  "waves", (json_int_t)plan->layout.n_waves, "grids", grids_json(a->grids), "room_bytes",
                  (json_int_t)a->room->bytes, "bits", c->bits, "rank", (json_int_t)c->solve.rank, "n_tokens",
                  (json_int_t)(a->job->corpus.n_sequences * a->job->corpus.seq_len), "steps", a->job->steps,
                  "read_bytes", (json_int_t)reads, "result_bytes", (json_int_t)plan->result_bytes, "hidden_bytes",
                  (json_int_t)plan->hidden_bytes, "stats_bytes", (json_int_t)plan->stats_bytes, "disk_bytes",
                  (json_int_t)(plan->result_bytes + plan->hidden_bytes + (c->keep_stats ? plan->stats_bytes : 0) +
                               (a->room->spills_to_host ? 0 : spilled)),
                  "memory_bytes", (json_int_t)memory_total(&plan->rank[plan_neediest(plan)].memory), "ranks", ranks,
                  "seconds", rate ? json_number(plan_seconds(plan, rate)) : json_null(), "times", times_json(a),
                  "command", command ? command : "");
    json_object_set_new(json, "n_sequences", json_integer((json_int_t)a->job->corpus.n_sequences));
    json_object_set_new(json, "seq_len", json_integer((json_int_t)a->job->corpus.seq_len));
    json_object_set_new(json, "fewest_spills", json_boolean(a->grids->fewest_spills));
    json_object_set_new(json, "allowed_bytes", c->memory > 0 ? json_integer((json_int_t)c->memory) : json_null());
    json_object_set_new(json, "spilled_bytes", json_integer((json_int_t)spilled));
    if (plan->layout.spills)
        json_object_set_new(json, "spilled_to", json_string(a->room->spills_to_host ? "host memory" : "disk"));
    if (a->job->config->n_experts > 0 && !c->stats)
        json_object_set_new(json, "expert_traffic", json_string(expert_traffic_name(plan->layout.traffic)));
    free(command);
    return out_json(json);
}
