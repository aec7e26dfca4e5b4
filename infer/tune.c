/* SPDX-License-Identifier: Apache-2.0
 * Tune: see tune.h. */
#include "infer/tune.h"

#include "base/err.h"
#include "base/log.h"
#include "base/philox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A time shorter than this is mostly the queue's; a longer one tells nothing more. */
static const double least_s = 2e-3;

/* Values that the kernels' choices can take; one that a product has no kernel for answers ERR_UNSUPPORTED. */
static const char *const choices[] = {
    "linear.tier=2",
    "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=1",
    "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=2",
    "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=4",
    "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=8",
    "linear.tier=2,linear.decode_tiles=2,linear.decode_slices=1",
    "linear.tier=2,linear.decode_tiles=2,linear.decode_slices=2",
    "linear.tier=2,linear.decode_tiles=2,linear.decode_slices=4",
    "linear.tier=2,linear.decode_tiles=4,linear.decode_slices=1",
    "linear.tier=2,linear.decode_tiles=4,linear.decode_slices=2",
    "linear.tier=2,linear.decode_tiles=4,linear.decode_slices=4",
    "linear.tier=3,linear.tile=0,linear.slices=1",
    "linear.tier=3,linear.tile=0,linear.slices=2",
    "linear.tier=3,linear.tile=0,linear.slices=4",
    "linear.tier=3,linear.tile=1,linear.slices=1",
    "linear.tier=3,linear.tile=1,linear.slices=2",
    "linear.tier=3,linear.tile=1,linear.slices=4",
    "linear.tier=3,linear.tile=2,linear.slices=1",
    "linear.tier=3,linear.tile=2,linear.slices=2",
    "linear.tier=3,linear.tile=2,linear.slices=4",
    "linear.tier=3,linear.tile=3,linear.slices=1",
    "linear.tier=3,linear.tile=3,linear.slices=2",
    "linear.tier=3,linear.tile=3,linear.slices=4",
    "linear.tier=4",
    "linear.tier=5,linear.wgmma_tile=0,linear.slices=1",
    "linear.tier=5,linear.wgmma_tile=0,linear.slices=2",
    "linear.tier=5,linear.wgmma_tile=0,linear.slices=4",
    "linear.tier=5,linear.wgmma_tile=1,linear.slices=1",
    "linear.tier=5,linear.wgmma_tile=1,linear.slices=2",
    "linear.tier=5,linear.wgmma_tile=1,linear.slices=4",
};

struct product {
    struct model *model;
    enum module module;
    struct buf x_buf, wide_buf, y_buf, r_buf;
    struct mat x, y, r;
};

static void product_free(struct product *p)
{
    buf_free(&p->x_buf);
    buf_free(&p->wide_buf);
    buf_free(&p->y_buf);
    buf_free(&p->r_buf);
}

static int product_create(struct model *model, enum module module, int64_t rows, struct product *p)
{
    int err = OK;
    struct backend *be = model->dec.be;
    const struct linear *l = &model->dec.layers[0].module[module];
    struct mat wide;
    *p = (struct product){.model = model, .module = module};
    TRY(mat_alloc(be, DT_F32, rows, l->d_in, &p->wide_buf, &wide));
    TRY(mat_alloc(be, be->act, rows, l->d_in, &p->x_buf, &p->x));
    TRY(mat_alloc(be, DT_F32, rows, l->d_out, &p->y_buf, &p->y));
    TRY(mat_alloc(be, DT_F32, rows, l->rank, &p->r_buf, &p->r));
    TRY(be->ops->randn(be, 0, STREAM_PROBES, 0, 0, &wide));
    TRY(be->ops->convert(be, &wide, &p->x));
    if (l->rank > 0)
        TRY(be->ops->randn(be, 0, STREAM_PROBES, 1, 0, &p->r));
out:
    return err;
}

/* The product of every layer once: a step, since the host queues slower than a GPU makes the small ones. */
static int all_layers(struct product *p, struct step *step)
{
    int err = OK, replayed = 0;
    struct decoder *dec = &p->model->dec;
    TRY(dec->be->ops->step_begin(dec->be, step, &replayed));
    if (replayed)
        goto out;
    for (int64_t l = 0; l < p->model->config.n_layers && err == OK; l++)
        err = linear_apply(dec->be, &dec->layers[l].module[p->module], &p->x, &p->r, &p->y);
    const int ended = dec->be->ops->step_end(dec->be, step);
    err = err ? err : ended;
out:
    return err;
}

/* Seconds of one product; the layers take turns. */
static int time_product(struct product *p, const char *choice, double *seconds)
{
    int err = OK;
    struct backend *be = p->model->dec.be;
    struct step step = {0};
    if (setenv("GLOWQ_TUNE", choice, 1) != 0)
        FAIL(ERR_NOMEM, "an environment variable");
    for (int i = 0; i < 2; i++) /* cold code, then the recording */
        TRY(all_layers(p, &step));
    TRY(be->ops->sync(be));
    for (int64_t n = 1;; n *= 4) {
        const double start = now_s();
        for (int64_t i = 0; i < n; i++)
            TRY(all_layers(p, &step));
        TRY(be->ops->sync(be));
        const double passed = now_s() - start;
        *seconds = passed / (double)(n * p->model->config.n_layers);
        if (passed > least_s)
            break;
    }
out:
    be->ops->step_free(be, &step);
    return err;
}

int tune_linear(struct model *model, enum module module, int64_t rows, struct tune_result *out)
{
    int err = OK;
    struct product p = {0};
    const struct linear *l = &model->dec.layers[0].module[module];
    const char *before = getenv("GLOWQ_TUNE");
    char *saved = before ? strdup(before) : NULL;
    double seconds = 0;
    *out = (struct tune_result){.module = module, .rows = rows, .d_out = l->d_out, .d_in = l->d_in};
    TRY(product_create(model, module, rows, &p));
    TRY(time_product(&p, saved ? saved : "", &seconds));
    out->own_us = out->best_us = 1e6 * seconds;
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++) {
        const int tried = time_product(&p, choices[i], &seconds);
        if (tried == ERR_UNSUPPORTED)
            continue;
        TRY(tried);
        if (1e6 * seconds < out->best_us) {
            out->best_us = 1e6 * seconds;
            snprintf(out->best, sizeof out->best, "%s", choices[i]);
        }
    }
    out->bytes_per_s = (double)(linear_bytes(l) + mat_bytes(&p.x) + mat_bytes(&p.y)) / (out->best_us / 1e6);
    out->flops_per_s = 2 * (double)rows * (double)l->d_out * (double)(l->d_in + l->rank) / (out->best_us / 1e6);
out:
    if (saved)
        setenv("GLOWQ_TUNE", saved, 1);
    else
        unsetenv("GLOWQ_TUNE");
    free(saved);
    product_free(&p);
    return err;
}
