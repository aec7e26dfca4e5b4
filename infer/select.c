/* SPDX-License-Identifier: Apache-2.0
 * Select: see select.h. manifest -> units -> falls -> orders -> measured points -> the choice. */
#include "infer/select.h"

#include "base/err.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *score_name(enum score score)
{
    static const char *const names[N_SCORES] = {"sensitivity", "energy", "captured", "order"};
    return names[score];
}

/* ---- units -------------------------------------------------------------------------------------------------------- */

static int unit_of_name(const char *name)
{
    for (int unit = 0; name && unit < N_UNITS; unit++)
        if (strcmp(name, unit_name(unit)) == 0)
            return unit;
    return -1;
}

static int by_place(const void *a, const void *b)
{
    const struct select_unit *x = a, *y = b;
    return x->layer != y->layer ? (x->layer > y->layer) - (x->layer < y->layer) : x->unit - y->unit;
}

int select_units(const json_t *manifest, int64_t n_layers, struct selection *s)
{
    int err = OK;
    size_t i;
    json_t *entry, *groups = json_object_get(manifest, "groups");
    memset(s, 0, sizeof *s);
    s->n_layers = n_layers;
    if (!json_is_array(groups))
        FAIL(ERR_FORMAT, "manifest.json: no \"groups\"");
    if (!(s->units = calloc(json_array_size(groups) + 1, sizeof *s->units)) ||
        !(s->layers = calloc((size_t)n_layers + 1, sizeof *s->layers)))
        FAIL(ERR_NOMEM, "%zu groups", json_array_size(groups));
    json_array_foreach(groups, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "group"));
        const json_t *energy = json_object_get(entry, "energy"), *captured = json_object_get(entry, "captured");
        const struct select_unit unit = {.layer = json_integer_value(json_object_get(entry, "layer")),
                                         .unit = unit_of_name(name),
                                         .rank = json_integer_value(json_object_get(entry, "rank")),
                                         .bytes = json_integer_value(json_object_get(entry, "factor_bytes")),
                                         .energy = json_number_value(energy),
                                         .captured = json_number_value(captured),
                                         .fall = NAN};
        if (unit.unit < 0 || unit.layer < 0 || unit.layer >= n_layers || unit.bytes < 0 || !json_is_number(energy) ||
            !json_is_number(captured))
            FAIL(ERR_FORMAT, "manifest.json: entry %zu of \"groups\" (%s, layer %lld of %lld) isn't one of a group", i,
                 name ? name : "no name", (long long)unit.layer, (long long)n_layers);
        if (unit.bytes == 0)
            continue;
        s->units[s->n_units++] = unit;
        s->bytes += unit.bytes;
    }
    if (s->n_units == 0)
        FAIL(ERR_ARG, "no group of this model has a correction: there is nothing to choose from");
    qsort(s->units, (size_t)s->n_units, sizeof *s->units, by_place);
out:
    if (err)
        selection_free(s);
    return err;
}

void selection_free(struct selection *s)
{
    free(s->units);
    free(s->points);
    free(s->layers);
    memset(s, 0, sizeof *s);
}

/* ---- orders and budgets ------------------------------------------------------------------------------------------- */

/* What the units of a choice add up of a score. */
static double worth(const struct select_unit *unit, enum score score)
{
    return score == SCORE_SENSITIVITY ? unit->fall : score == SCORE_ENERGY ? unit->energy : unit->captured;
}

struct place {
    double score;
    int64_t unit;
};

static int by_score(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->unit > y->unit) - (x->unit < y->unit);
}

int select_order(const struct selection *s, enum score score, int64_t *order)
{
    int err = OK;
    struct place *places = calloc((size_t)s->n_units + 1, sizeof *places);
    if (!places)
        FAIL(ERR_NOMEM, "an order of %lld units", (long long)s->n_units);
    for (int64_t i = 0; i < s->n_units; i++) {
        const struct select_unit *unit = &s->units[i];
        const double bytes = score == SCORE_ENERGY ? 1 : (double)unit->bytes;
        places[i] = (struct place){score == SCORE_ORDER ? 0 : worth(unit, score) / bytes, i};
    }
    qsort(places, (size_t)s->n_units, sizeof *places, by_score);
    for (int64_t i = 0; i < s->n_units; i++)
        order[i] = places[i].unit;
out:
    free(places);
    return err;
}

void select_take(const struct selection *s, const int64_t *order, int64_t budget, struct select_point *point,
                 struct restored *layers)
{
    memset(layers, 0, (size_t)s->n_layers * sizeof *layers);
    point->n_units = point->bytes = 0;
    for (int64_t i = 0; i < s->n_units; i++) {
        const struct select_unit *unit = &s->units[order[i]];
        if (unit->bytes > budget - point->bytes)
            continue;
        layers[unit->layer].has[unit->unit] = 1;
        point->bytes += unit->bytes;
        point->n_units++;
    }
}

int64_t select_elbow(const struct selection *s, enum score score, const int64_t *order)
{
    int64_t bytes = 0, elbow = 0;
    double sum = 0, total = 0, farthest = 0;
    for (int64_t i = 0; i < s->n_units; i++)
        total += worth(&s->units[i], score);
    for (int64_t i = 0; i < s->n_units; i++) {
        bytes += s->units[order[i]].bytes;
        sum += worth(&s->units[order[i]], score);
        const double above = sum - total * (double)bytes / (double)s->bytes; /* the distance but for a constant */
        if (above > farthest) {
            farthest = above;
            elbow = bytes;
        }
    }
    return elbow;
}

/* ---- measuring ---------------------------------------------------------------------------------------------------- */

/* A model that is measured again and again. */
struct meter {
    struct model *model;
    struct restore *restore;
    const struct token_ids *ids;
    const struct evaluate_options *how;
    struct progress progress;
    int64_t n_done;
    double *everything; /* [n_windows] losses with everything restored */
};

/* What a measurement is compared by. */
static const double *losses(const struct meter *m, const struct evaluation *e)
{
    return m->how->reference ? e->reference.window_kl : e->window_nll;
}

/* Sets loss and what is above; the first call is of everything, and says what it was measured on. Collective. */
static int measure(struct meter *m, const struct restored *layers, struct selection *s, struct select_point *point)
{
    int err = OK;
    struct evaluation e = {0};
    restore_apply(m->restore, layers, &m->model->dec);
    TRY(evaluate_ids(m->model, m->ids, m->how, &e));
    if (!m->everything) {
        m->everything = malloc((size_t)e.n_windows * sizeof *m->everything);
        TRY(comm_agree(m->model->dec.tp, m->everything ? OK
                                                       : err_set(ERR_NOMEM, __FILE__, __LINE__,
                                                                 "losses of %lld windows", (long long)e.n_windows)));
        memcpy(m->everything, losses(m, &e), (size_t)e.n_windows * sizeof *m->everything);
        s->ctx = e.ctx;
        s->n_windows = e.n_windows;
        s->n_tokens = e.n_tokens;
    }
    point->loss = m->how->reference ? e.reference.kl : e.nll;
    point->loss_stderr = m->how->reference ? e.reference.kl_stderr : e.nll_stderr;
    point->above = evaluation_mean(&e, losses(m, &e), m->everything);
    point->above_stderr = evaluation_stderr(&e, losses(m, &e), m->everything);
    progress_update(&m->progress, ++m->n_done, "");
out:
    evaluation_free(&e);
    return err;
}

/* Each unit alone against none. layers: room. */
static int measure_falls(struct meter *m, const struct select_point *nothing, struct restored *layers,
                         struct selection *s)
{
    int err = OK;
    for (int64_t i = 0; i < s->n_units; i++) {
        struct select_unit *unit = &s->units[i];
        struct select_point alone;
        memset(layers, 0, (size_t)s->n_layers * sizeof *layers);
        layers[unit->layer].has[unit->unit] = 1;
        TRY(measure(m, layers, s, &alone));
        unit->fall = nothing->loss - alone.loss;
    }
out:
    return err;
}

static int64_t budget_of(const struct selection *s, const struct select_options *o, enum score score,
                         const int64_t *order)
{
    if (o->elbow)
        return select_elbow(s, score, order);
    return o->bytes >= 0 ? o->bytes : (int64_t)(o->share * (double)s->bytes);
}

/* What one score's order gives for a budget. layers: which they are. */
static int measure_budget(struct meter *m, enum score score, const int64_t *order, int64_t budget,
                          struct restored *layers, struct selection *s)
{
    struct select_point *point = &s->points[s->n_points++];
    point->score = (int)score;
    select_take(s, order, budget, point, layers);
    return measure(m, layers, s, point);
}

static int64_t point_budget(const struct selection *s, const struct select_options *o, int64_t i)
{
    return (int64_t)((double)s->bytes * (double)i / (double)o->n_points);
}

/* What one score makes of the wanted budget, which is the choice if it is the best so far, and the rest of its curve. layers, order:
 * room. */
static int measure_score(struct meter *m, const struct select_options *o, enum score score, struct restored *layers,
                         int64_t *order, struct selection *s)
{
    int err = OK;
    TRY(comm_agree(m->model->dec.tp, select_order(s, score, order)));
    const int64_t wanted = budget_of(s, o, score, order);
    TRY(measure_budget(m, score, order, wanted, layers, s));
    const struct select_point *point = &s->points[s->n_points - 1];
    if (s->chosen.score < 0 || point->loss < s->chosen.loss) {
        s->chosen = *point;
        memcpy(s->layers, layers, (size_t)s->n_layers * sizeof *layers);
    }
    for (int64_t i = 1; i < o->n_points; i++) {
        const int64_t budget = point_budget(s, o, i);
        if (budget != wanted)
            TRY(measure_budget(m, score, order, budget, layers, s));
    }
out:
    return err;
}

static int by_bytes(const void *a, const void *b)
{
    const struct select_point *x = a, *y = b;
    return x->score != y->score ? x->score - y->score : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int n_scores(const struct select_options *o)
{
    int n = 0;
    for (int score = 0; score < N_SCORES; score++)
        n += o->scores[score];
    return n;
}

/* Of one score: points between nothing and everything, and the budget, which may be one of them. */
static int64_t n_budgets(const struct selection *s, const struct select_options *o)
{
    int64_t n = o->n_points;
    for (int64_t i = 1; i < o->n_points && !o->elbow; i++)
        n -= point_budget(s, o, i) == budget_of(s, o, SCORE_ORDER, NULL);
    return n;
}

static int measure_all(struct meter *m, const struct select_options *o, struct restored *layers, int64_t *order,
                       struct selection *s)
{
    int err = OK;
    struct select_point nothing = {.score = -1}, everything = {.score = -1, .n_units = s->n_units, .bytes = s->bytes};
    const int64_t n_alone = o->scores[SCORE_SENSITIVITY] ? s->n_units : 0;
    progress_begin(&m->progress, "measurements", 2 + n_alone + n_scores(o) * n_budgets(s, o));
    memset(layers, 1, (size_t)s->n_layers * sizeof *layers);
    TRY(measure(m, layers, s, &everything));
    memset(layers, 0, (size_t)s->n_layers * sizeof *layers);
    TRY(measure(m, layers, s, &nothing));
    if (n_alone > 0)
        TRY(measure_falls(m, &nothing, layers, s));
    s->points[s->n_points++] = nothing;
    s->chosen.score = -1;
    for (int score = 0; score < N_SCORES; score++)
        if (o->scores[score])
            TRY(measure_score(m, o, (enum score)score, layers, order, s));
    qsort(s->points + 1, (size_t)(s->n_points - 1), sizeof *s->points, by_bytes);
    s->points[s->n_points++] = everything;
    progress_end(&m->progress);
out:
    return err;
}

int select_run(struct model *model, const char *text, int64_t n_bytes, const struct select_options *o,
               struct selection *s)
{
    int err = OK, local = OK;
    struct token_ids ids = {0};
    struct meter m = {.model = model, .ids = &ids, .how = &o->evaluate};
    struct restored *layers = calloc((size_t)s->n_layers + 1, sizeof *layers);
    int64_t *order = calloc((size_t)s->n_units + 1, sizeof *order);
    s->points = calloc((size_t)(2 + n_scores(o) * n_budgets(s, o)), sizeof *s->points);
    if (!layers || !order || !s->points)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "measurements of %lld units", (long long)s->n_units);
    local = local ? local : restore_open(&model->dec, &m.restore);
    TRY(comm_agree(model->dec.tp, local));
    TRY(evaluate_encode(model, text, n_bytes, o->evaluate.max_tokens, &ids));
    TRY(sha256_hex(text, (size_t)n_bytes, s->text_sha256));
    TRY(measure_all(&m, o, layers, order, s));
    restore_apply(m.restore, s->layers, &model->dec);
out:
    free(m.everything);
    restore_close(m.restore);
    free(ids.ids);
    free(layers);
    free(order);
    return err;
}
