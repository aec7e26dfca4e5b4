/* SPDX-License-Identifier: Apache-2.0
 * What serving takes: see plan_serve.h. */
#include "launch/plan_serve.h"

#include "base/err.h"
#include "calib/write.h"
#include "launch/calibration.h"
#include "launch/plan_output.h"
#include "model/memory.h"

#include <stdlib.h>
#include <string.h>

static const double gibi = 1073741824.0;

/* A model's weights in one of the ways that they can be served. */
struct format {
    char name[48];
    struct weight_format weights;
};

/* On so many ranks. */
struct row {
    int n_ranks, fits, serves; /* it fits; with room for one request of full length */
    struct memory_needs needs; /* of the rank that needs most, KV cache included */
    int64_t kv_tokens;
};

struct served {
    const struct options *options;
    const struct room *room;
    enum dtype act;
    struct model_config config;
    int64_t sequences, longest, batch_tokens, kv_wanted;
    double fraction; /* 0: the KV cache is as large as wanted, whatever there is */
    struct format format[2];
    int n_formats;
    struct row *row[2];          /* [n_rows] each */
    int n_rows[2], first_fit[2]; /* that serves; -1: none */
};

/* ---- what can be served ------------------------------------------------------------------------------------------------------ */

/* What calibrate would make of it. */
static int calibrated_format(struct weights *weights, const struct calibrate_options *c,
                             const struct model_config *config, struct format *format)
{
    int err = OK, seen[2] = {0};
    struct store_settings settings;
    struct store_layer_facts facts;
    calibrate_settings(c, config, &settings);
    format->weights = (struct weight_format){.bits = c->bits, .dtype = DT_BF16, .group_size = c->group_size};
    for (int64_t l = 0; l < config->n_layers; l++) {
        const int is_moe = config_is_moe(config, l);
        if (seen[is_moe]++)
            continue;
        TRY(layer_facts(weights, l, "", &settings, &facts));
        const struct layer_ranks ranks = layer_ranks_stored(&facts);
        *(is_moe ? &format->weights.moe : &format->weights.dense) = ranks;
        for (int g = 0; g < N_GROUPS; g++)
            format->weights.rank = max_i64(format->weights.rank, ranks.group[g]);
        for (int m = 0; m < N_MODULES; m++)
            format->weights.rank = max_i64(format->weights.rank, ranks.expert[m]);
    }
    snprintf(format->name, sizeof format->name, "%d bits, rank %lld", c->bits, (long long)c->solve.rank);
out:
    return err;
}

static int find_formats(struct served *s, struct backend *be, const struct calibrate_options *c)
{
    int err = OK;
    struct weights weights = {0};
    const struct model_options open = {.synthetic = c->synthetic, .no_tokenizer = 1};
    struct format *stored = &s->format[s->n_formats++];
    TRY(model_format(be, c->model, &open, &s->config, &stored->weights));
    snprintf(stored->name, sizeof stored->name, "as stored");
    if (stored->weights.bits > 0) { /* calibrated */
        snprintf(stored->name, sizeof stored->name, "%d bits, rank %lld", stored->weights.bits,
                 (long long)stored->weights.rank);
        goto out;
    }
    TRY(c->synthetic.config ? weights_open_synthetic(be, &c->synthetic, &s->config, 0, &weights)
                            : weights_open_checkpoint(be, c->model, &s->config, &weights));
    TRY(calibrated_format(&weights, c, &s->config, &s->format[s->n_formats++]));
out:
    weights_close(&weights);
    return err;
}

/* ---- how much ---------------------------------------------------------------------------------------------------------------- */

/* One rank without a KV cache, and a block of that. */
struct share {
    struct shape shape;
    size_t needs, block;
};

/* What the ranks need before the KV cache, shares[n_ranks]; 0 where so many can't share the model. */
static int find_shares(const struct served *s, const struct weight_format *format, int n_ranks, struct share *shares)
{
    const int before = err_quiet(1);
    int ok = 1;
    for (int p = 0; p < n_ranks && ok; p++) {
        struct memory_needs needs = {0};
        ok = shape_of(&s->config, format->group_size, p, n_ranks, &shares[p].shape) == OK;
        if (!ok)
            break;
        memory_of_model(&s->config, &shares[p].shape, format, s->act, s->batch_tokens, s->config.n_layers, 0, &needs);
        shares[p].needs = memory_total(&needs);
        shares[p].block = memory_kv(&s->config, &shares[p].shape, s->act, s->config.n_layers, KV_BLOCK);
    }
    err_quiet(before);
    return ok;
}

/* Blocks of the KV cache that every rank has room for, as model_open finds them; *fits: that, or what is wanted, fits in all of the
 * memory. */
static int64_t find_blocks(const struct served *s, int n_ranks, const struct share *shares, int *fits)
{
    const int per_host = s->room->per_host;
    const int64_t wanted = (s->kv_wanted + KV_BLOCK - 1) / KV_BLOCK;
    int64_t blocks = wanted;
    for (int pass = 0; pass < 2; pass++) { /* how many; and whether they fit */
        for (int first = 0; first < n_ranks; first += (int)min_i64(per_host, n_ranks - first)) {
            const int n = (int)min_i64(per_host, n_ranks - first);
            size_t together = 0;
            for (int p = first; p < first + n; p++)
                together += shares[p].needs + (pass > 0 ? (size_t)blocks * shares[p].block : 0);
            if (pass > 0)
                *fits = *fits && together <= s->room->bytes;
            const size_t left = memory_left(s->room->bytes, s->fraction, together, n);
            for (int p = first; p < first + n && pass == 0 && s->fraction > 0; p++)
                blocks = min_i64(blocks, shares[p].block > 0 ? (int64_t)(left / shares[p].block) : blocks);
        }
        blocks = max_i64(blocks, 1);
    }
    return blocks;
}

/* 0 where so many ranks can't share the model. */
static int make_row(const struct served *s, const struct format *format, int n_ranks, struct share *shares,
                    struct row *row)
{
    int most = 0;
    *row = (struct row){.n_ranks = n_ranks, .fits = 1};
    if (!find_shares(s, &format->weights, n_ranks, shares))
        return 0;
    const int64_t blocks = find_blocks(s, n_ranks, shares, &row->fits);
    for (int p = 1; p < n_ranks; p++)
        if (shares[p].needs + (size_t)blocks * shares[p].block >
            shares[most].needs + (size_t)blocks * shares[most].block)
            most = p;
    row->kv_tokens = min_i64(blocks * KV_BLOCK, s->kv_wanted);
    row->serves = row->fits && row->kv_tokens >= min_i64(s->longest, s->kv_wanted);
    memory_of_model(&s->config, &shares[most].shape, &format->weights, s->act, s->batch_tokens, s->config.n_layers,
                    row->kv_tokens, &row->needs);
    return 1;
}

/* The ranks asked for, or all numbers that can share the model. */
static int make_rows(struct served *s)
{
    int err = OK;
    const int asked = (int)options_int(s->options, "ranks");
    const int most = asked > 0 ? asked : (int)options_int(s->options, "max-ranks");
    struct share *shares = calloc((size_t)most, sizeof *shares);
    if (!shares)
        FAIL(ERR_NOMEM, "%d ranks", most);
    for (int i = 0; i < s->n_formats; i++) {
        s->first_fit[i] = -1;
        if (!(s->row[i] = calloc((size_t)most, sizeof *s->row[i])))
            FAIL(ERR_NOMEM, "%d plans", most);
        for (int n = asked > 0 ? asked : 1; n <= most; n++) {
            struct row *row = &s->row[i][s->n_rows[i]];
            if (!make_row(s, &s->format[i], n, shares, row))
                continue;
            if (row->serves && s->first_fit[i] < 0)
                s->first_fit[i] = s->n_rows[i];
            s->n_rows[i]++;
        }
    }
    if (s->n_rows[0] == 0) /* it says why */
        TRY(shape_of(&s->config, s->format[0].weights.group_size, 0, most, &shares[0].shape));
out:
    free(shares);
    return err;
}

/* ---- answers ----------------------------------------------------------------------------------------------------------------- */

static double requests_of(const struct served *s, const struct row *row)
{
    return (double)row->kv_tokens / (double)s->longest;
}

/* "mpirun -n 2 glowq serve --model DIR": what calibrate makes isn't there yet. */
static void print_command(const struct served *s, int format, const struct row *row)
{
    static const char *const leave[] = {
        "ranks",  "max-ranks",  "gpu-memory", "host-memory", "ranks-per-host", "serve",        "json",        "model",
        "bits",   "group-size", "rank",       "sharing",     "synthetic",      "factor-dtype", "expert-rank", "layers",
        "memory", "scratch",    NULL};
    char *words = calibration_command(s->options, "serve", leave);
    const char *model = options_string(s->options, "model");
    out_print("run             ");
    if (row->n_ranks > 1)
        out_print("mpirun -n %d ", row->n_ranks);
    out_print("%s --model %s\n", words ? words : "glowq serve",
              format > 0 ? "OUT.glowq"
              : model    ? model
                         : options_string(s->options, "synthetic"));
    free(words);
}

static void print_rows(const struct served *s, int format)
{
    out_print("%-15s %12s %12s %12s  %s\n", s->format[format].name, "ranks", "a rank", "KV tokens", "full requests");
    int i = 0;
    for (int is_enough = 0; i < s->n_rows[format] && !is_enough; i++) { /* until all that is wanted fits */
        const struct row *row = &s->row[format][i];
        is_enough = row->serves && row->kv_tokens >= s->kv_wanted;
        out_print("%-15s %12d %8.2f GiB", "", row->n_ranks, (double)memory_total(&row->needs) / gibi);
        if (row->fits)
            out_print(" %12lld  %.1f%s\n", (long long)row->kv_tokens, requests_of(s, row),
                      row->serves ? "" : ": none of that length");
        else
            out_print("  doesn't fit\n");
    }
    if (i < s->n_rows[format])
        out_print("%-15s %12s (--json lists them)\n", "", "more");
}

static void print_all(const struct served *s)
{
    char room[64];
    plan_room_text(s->room, room, sizeof room);
    out_print("model           %s: %s, %lld layers\n", source_name(s->options), s->config.family,
              (long long)s->config.n_layers);
    out_print("serving         up to %lld requests at once, of up to %lld tokens each; %lld tokens a step; %s",
              (long long)s->sequences, (long long)s->longest, (long long)s->batch_tokens, room);
    if (s->fraction > 0)
        out_print(", of which %.2f are taken", s->fraction);
    out_print("\n");
    for (int f = 0; f < s->n_formats; f++) {
        print_rows(s, f);
        if (s->first_fit[f] < 0)
            continue;
        const struct row *row = &s->row[f][s->first_fit[f]];
        out_print("  a rank of %d:", row->n_ranks);
        for (int i = 0; i < row->needs.n; i++)
            out_print("%s %s %.2f", i ? "," : "", row->needs.item[i].name, (double)row->needs.item[i].bytes / gibi);
        out_print(" GiB\n");
    }
    const int last = s->n_formats - 1, f = s->first_fit[last] >= 0 ? last : 0;
    print_command(s, f, &s->row[f][s->first_fit[f]]);
}

static json_t *row_json(const struct served *s, const struct row *row)
{
    json_t *items = json_object();
    for (int i = 0; i < row->needs.n; i++)
        json_object_set_new(items, row->needs.item[i].name, json_integer((json_int_t)row->needs.item[i].bytes));
    return json_pack("{s:i, s:b, s:I, s:o, s:I, s:o}", "n_ranks", row->n_ranks, "fits", row->serves, "memory_bytes",
                     (json_int_t)memory_total(&row->needs), "memory", items, "kv_tokens", (json_int_t)row->kv_tokens,
                     "requests", json_number(requests_of(s, row)));
}

static int print_json(const struct served *s)
{
    json_t *formats = json_array();
    for (int f = 0; f < s->n_formats; f++) {
        json_t *rows = json_array();
        for (int i = 0; i < s->n_rows[f]; i++)
            json_array_append_new(rows, row_json(s, &s->row[f][i]));
        const int fewest = s->first_fit[f] < 0 ? 0 : s->row[f][s->first_fit[f]].n_ranks;
        json_array_append_new(formats, json_pack("{s:s, s:i, s:i, s:o}", "weights", s->format[f].name, "bits",
                                                 s->format[f].weights.bits, "fewest_ranks", fewest, "plans", rows));
    }
    return out_json(json_pack("{s:i, s:s, s:I, s:I, s:I, s:f, s:I, s:o}", "schema_version", JSON_SCHEMA_VERSION,
                              "model", source_name(s->options), "max_sequences", (json_int_t)s->sequences, "max_length",
                              (json_int_t)s->longest, "max_batch_tokens", (json_int_t)s->batch_tokens,
                              "memory_fraction", s->fraction, "room_bytes", (json_int_t)s->room->bytes, "formats",
                              formats));
}

/* The leanest way that was looked at, and what it lacks. */
static int refuse(const struct served *s)
{
    char what[512];
    const int last = s->n_formats - 1;
    const struct row *row = &s->row[last][0];
    for (int i = 1; i < s->n_rows[last]; i++)
        row = memory_total(&s->row[last][i].needs) < memory_total(&row->needs) ? &s->row[last][i] : row;
    const int is_small = memory_total(&row->needs) < (size_t)1 << 30;
    memory_describe(&row->needs, is_small, what, sizeof what);
    if (row->fits)
        return err_set(
            ERR_FIT, __FILE__, __LINE__,
            "on %d ranks there is room for %lld tokens, a request may have %lld: try more --ranks or a shorter "
            "--max-length",
            row->n_ranks, (long long)row->kv_tokens, (long long)s->longest);
    return err_set(ERR_FIT, __FILE__, __LINE__, "each of %d ranks needs %s, %s %.2f %s: try %s", row->n_ranks, what,
                   s->room->what, (double)s->room->bytes / (is_small ? 1048576.0 : gibi), is_small ? "MiB" : "GiB",
                   options_int(s->options, "ranks") > 0 ? "more --ranks or more memory"
                                                        : "fewer --bits or more memory");
}

int plan_serve(const struct options *o, struct backend *be, const struct backend *planned, const struct room *room)
{
    int err = OK;
    const struct calibrate_options c = calibration_options(o);
    const int64_t given = options_int(o, "kv-tokens");
    struct served s = {.options = o,
                       .room = room,
                       .act = planned->act,
                       .sequences = options_int(o, "max-sequences"),
                       .batch_tokens = options_int(o, "max-batch-tokens"),
                       .fraction = given > 0 ? 0 : options_real(o, "memory-fraction")};
    TRY(find_formats(&s, be, &c));
    s.longest = options_int(o, "max-length") > 0 ? options_int(o, "max-length") : s.config.max_position;
    s.kv_wanted = given > 0 ? given : s.sequences * s.longest;
    TRY(make_rows(&s));
    if (s.first_fit[0] < 0 && (s.n_formats == 1 || s.first_fit[1] < 0))
        TRY(refuse(&s));
    if (options_flag(o, "json"))
        TRY(print_json(&s));
    else
        print_all(&s);
out:
    free(s.row[0]);
    free(s.row[1]);
    return err;
}
