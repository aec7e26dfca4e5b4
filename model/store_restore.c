/* SPDX-License-Identifier: Apache-2.0
 * Restore, in files: see restore.h. A layer's tables are copied as they are stored, block by block, each checked on its way. */
#include "model/restore.h"

#include "base/err.h"
#include "model/store_private.h"

#include <stdlib.h>
#include <string.h>

static const int64_t piece_bytes = 4 << 20;

static void leave_out_module(struct store_module *m)
{
    m->rank = m->first = m->step = 0;
    m->captured = 0;
}

static void leave_out(struct store_layer_facts *facts, int unit)
{
    const enum group group = unit == UNIT_EXPERT_DOWN ? GROUP_DOWN : (enum group)unit;
    enum module first;
    int count;
    group_modules(group, &first, &count);
    if (unit == UNIT_EXPERT_DOWN) {
        facts->expert_down.rank = 0;
        leave_out_module(&facts->expert[MOD_DOWN]);
        return;
    }
    struct store_group *g = &facts->group[group];
    g->rank = g->steps = 0;
    g->captured = g->energy_error = 0;
    g->energy = g->trace > 0 ? 0 : 1;
    for (int m = (int)first; m < (int)first + count; m++) {
        leave_out_module(&facts->module[m]);
        if (group == GROUP_GATE_UP)
            leave_out_module(&facts->expert[m]);
    }
}

/* What each expert's error falls by is 0 of a unit that is left out. captured [n, N_EXPERT_MODULES]. */
static void leave_out_captured(double *captured, int64_t n, const struct restored *restored)
{
    for (int64_t i = 0; i < n * N_EXPERT_MODULES; i++) {
        const int unit = MOD_GATE + i % N_EXPERT_MODULES == MOD_DOWN ? (int)UNIT_EXPERT_DOWN : (int)GROUP_GATE_UP;
        captured[i] = restored->has[unit] ? captured[i] : 0;
    }
}

/* restored: of table TABLE_CAPTURED of a layer, else not looked at. */
static int copy_table(struct table *from, struct store_writer *to, int table, const struct restored *restored)
{
    int err = OK;
    const struct table_spec *spec = &from->spec;
    const int64_t block_bytes = from->block_rows * (int64_t)from->row_bytes;
    const int64_t step = from->block_rows * max_i64(1, piece_bytes / max_i64(block_bytes, 1));
    void *rows = malloc((size_t)(min_i64(step, spec->rows) * (int64_t)from->row_bytes) + 1);
    if (!rows)
        FAIL(ERR_NOMEM, "rows of %s", spec->name);
    for (int64_t slab = 0; slab < max_i64(spec->slabs, 1); slab++)
        for (int64_t row0 = 0; row0 < spec->rows; row0 += step) {
            const int64_t n = min_i64(step, spec->rows - row0);
            TRY(table_read(from, slab, row0, n, rows));
            if (restored && table == TABLE_CAPTURED)
                leave_out_captured(rows, n, restored);
            TRY(writer_put(to, table, slab, row0, n, rows));
        }
out:
    free(rows);
    return err;
}

int restore_write_layer(const struct store *from, int64_t l, const struct restored *restored, const char *dir,
                        const char *fingerprint)
{
    int err = OK;
    struct store_layer *layer = NULL;
    struct store_writer *w = NULL;
    struct table_spec specs[N_TABLES];
    TRY(store_layer_open(from, l, &layer));
    struct store_layer_facts facts = *store_layer_facts(layer);
    snprintf(facts.fingerprint, sizeof facts.fingerprint, "%s", fingerprint);
    for (int unit = 0; unit < N_UNITS; unit++)
        if (!restored->has[unit])
            leave_out(&facts, unit);
    TRY(store_layer_create(dir, &facts, &w));
    layer_specs(&facts, specs);
    for (int t = 0; t < N_TABLES; t++)
        if (specs[t].rows > 0)
            TRY(copy_table(&layer_tables(layer)[t], w, t, restored));
    err = store_publish(w);
    w = NULL;
out:
    store_discard(w);
    store_layer_close(layer);
    return err;
}

int restore_write_head(const struct store *from, const struct model_config *config, const char *dir,
                       const char *fingerprint)
{
    int err = OK;
    struct store_head *head = NULL;
    struct store_writer *w = NULL;
    enum dtype dtype[N_STORE_ENDS];
    int has[N_STORE_ENDS];
    TRY(store_head_open(from, &head));
    for (int end = 0; end < N_STORE_ENDS; end++)
        has[end] = store_head_has(head, (enum store_end)end, &dtype[end]);
    TRY(store_head_create(dir, config, fingerprint, dtype[STORE_EMBEDDING], dtype[STORE_NORM], has[STORE_HEAD],
                          dtype[STORE_HEAD], &w));
    for (int end = 0; end < N_STORE_ENDS; end++)
        if (has[end])
            TRY(copy_table(&head_tables(head)[end], w, end, NULL));
    err = store_publish(w);
    w = NULL;
out:
    store_discard(w);
    store_head_close(head);
    return err;
}
