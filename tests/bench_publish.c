/* SPDX-License-Identifier: Apache-2.0
 * bench_publish [DIR [SECONDS]]: what a layer's file costs the layer behind it. Layers of about 1 GB (Llama-3.1-405B's MLP at 2 bits)
 * are written to DIR as calibration writes them, twice: one whose publication is waited for at once, and one that has SECONDS (10) of
 * other work beside it.
 */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mat.h"
#include "calib/publication.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { D = 16384, D_FF = 53248, ROWS = 256, GROUP_SIZE = 128 };

static const char fingerprint[] = "0000000000000000000000000000000000000000000000000000000000000000";

static void facts_of(int64_t l, struct store_layer_facts *facts)
{
    const struct model_config config = {
        .family = "llama", .n_layers = 4, .d_model = D, .d_ff = D_FF, .n_heads = 128, .n_kv_heads = 8, .head_dim = 128};
    const struct store_settings settings = {
        .bits = 2, .group_size = GROUP_SIZE, .rank = 0, .factor_dtype = DT_BF16, .vector_dtype = DT_BF16};
    store_layer_plan(&config, l, fingerprint, &settings, facts);
}

/* Zeros will do: neither checksums nor the disk look at them. */
static int put_layer(struct store_writer *w, const struct store_layer_facts *facts, void *zeros)
{
    int err = OK;
    const double no_captured[N_MODULES] = {0};
    for (int i = 0; i < N_MODULES; i++) {
        const struct store_module *m = &facts->module[i];
        const struct matrix matrix = {(enum module)i, EXPERT_NONE};
        for (int64_t row = 0; row < m->d_out; row += ROWS)
            TRY(store_put_codes(w, matrix, row, min_i64(m->d_out - row, ROWS), zeros, zeros, zeros));
    }
    for (int i = 0; i < N_GROUPS; i++)
        TRY(store_put_group(w, (struct group_id){(enum group)i, EXPERT_NONE}, NULL, &facts->group[i], no_captured));
    for (int i = 0; i < N_VECTORS; i++)
        if (facts->vector[i].n > 0)
            TRY(store_put_vector(w, (enum vector)i, zeros));
out:
    return err;
}

static int measure(struct comm *comm, const char *dir, int64_t l, double beside_s, void *zeros)
{
    int err = OK;
    struct publication p = {0};
    struct store_layer_facts facts;
    struct store_writer *w = NULL;
    struct store_sealed sealed;
    const struct timespec pause = {(time_t)beside_s, 0};
    facts_of(l, &facts);
    TRY(publication_open(&p));
    double start = now_s();
    TRY(store_layer_create(dir, &facts, &w));
    TRY(put_layer(w, &facts, zeros));
    const double written = now_s();
    err = store_seal(w, &sealed);
    w = NULL;
    TRY(err);
    const double whole = now_s();
    TRY(publication_begin(&p, comm, 0, &sealed));
    nanosleep(&pause, NULL);
    const double other = now_s();
    TRY(publication_wait(&p));
    printf("%.2f GB: put in %.2f s, closed in %.2f s; then %.1f s of other work, and %.2f s of waiting for the disk\n",
           (double)store_layer_bytes(&facts) / 1e9, written - start, whole - written, other - whole, now_s() - other);
    unlink(sealed.path);
out:
    store_discard(w);
    publication_close(&p);
    return err;
}

int main(int argc, char **argv)
{
    int err = OK, lock = -1;
    char dir[PATH_MAX];
    const double beside_s = argc > 2 ? atof(argv[2]) : 10;
    struct backend be = {0};
    struct comm comm = {0};
    void *zeros = calloc((size_t)ROWS * D_FF, 1);
    TRY(backend_open(&be, "cpu", 1));
    TRY(comm_open_self(&comm, &be));
    snprintf(dir, sizeof dir, "%s/bench_publish.%d", argc > 1 ? argv[1] : ".", (int)getpid());
    if (!zeros)
        FAIL(ERR_NOMEM, "a panel");
    TRY(store_lock(dir, &lock));
    TRY(measure(&comm, dir, 0, 0, zeros));
    TRY(measure(&comm, dir, 1, beside_s, zeros));
out:
    store_unlock(dir, lock);
    if (lock >= 0) {
        char layers[PATH_MAX];
        if (file_join(layers, sizeof layers, dir, "layers") == OK)
            rmdir(layers);
        rmdir(dir);
    }
    free(zeros);
    comm_close(&comm);
    backend_close(&be);
    return err ? err_exit_code(err) : 0;
}
