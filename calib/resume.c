/* SPDX-License-Identifier: Apache-2.0
 * Resume: see resume.h. */
#include "calib/resume.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

/* States are kept when running the layers again would take so many times as long as keeping them. */
enum { WORTH = 10 };
/* Until one has been timed: what a shared disk takes, bytes per second. */
static const double disk_rate = 200e6;

/* Whole blocks of the store, of about 4 MB. */
static int64_t piece_rows(int64_t cols)
{
    const int64_t rows = ((int64_t)4 << 20) / (cols * (int64_t)sizeof(float));
    return max_i64(1, rows / STORE_BLOCK_ROWS) * STORE_BLOCK_ROWS;
}

static struct hidden_id id_of(const struct resume *r, const struct mat *rows, int64_t l, int64_t block)
{
    return (struct hidden_id){.dir = r->out,
                              .fingerprint = r->fingerprint,
                              .layer = l,
                              .block = block,
                              .rows = rows->rows,
                              .cols = rows->cols};
}

/* ---- back ---------------------------------------------------------------------------------------------------------- */

static int read_block(const struct resume *r, const struct forward *f, int64_t l, int64_t block, float *piece)
{
    int err = OK;
    struct backend *be = r->comm->be;
    struct mat rows = forward_rows(f, block);
    const struct hidden_id id = id_of(r, &rows, l, block);
    const int64_t step = piece_rows(rows.cols);
    struct hidden_file *file = NULL;
    TRY(hidden_open(&id, &file));
    for (int64_t row = 0; row < rows.rows; row += step) {
        const struct mat to = mat_rows(&rows, row, min_i64(rows.rows - row, step));
        TRY(hidden_read(file, row, to.rows, piece));
        TRY(be->ops->put(be, to.data, piece, mat_bytes(&to)));
    }
out:
    hidden_close(file);
    return err;
}

/* This rank's super-blocks. Rank-local. */
static int read_generation(const struct resume *r, const struct forward *f, int64_t l)
{
    int err = OK;
    float *piece = malloc((size_t)(piece_rows(f->hidden.cols) * f->hidden.cols) * sizeof *piece);
    if (!piece)
        FAIL(ERR_NOMEM, "a piece of hidden states");
    for (int64_t b = f->blocks.begin; f->keeps && b < f->blocks.end; b++)
        TRY(read_block(r, f, l, b, piece));
out:
    free(piece);
    return err;
}

/* *is_read: every rank has its part. What is wrong is a warning. Collective. */
static int try_generation(const struct resume *r, const struct forward *f, int64_t l, int *is_read)
{
    int err = OK;
    char why[512] = "";
    const int before = err_quiet(1);
    const int local = read_generation(r, f, l);
    err_quiet(before);
    int64_t failed = local ? r->comm->rank : -1;
    TRY(comm_max_i64(r->comm, &failed, 1));
    *is_read = failed < 0;
    if (failed < 0)
        goto out;
    snprintf(why, sizeof why, "%s", err_last());
    TRY(comm_bcast(r->comm, why, sizeof why, (int)failed));
    log_warn("the hidden states kept after layer %lld can't be used: %s", (long long)l, why);
out:
    return err;
}

int resume_begin(struct comm *comm, const char *out, int64_t every, const char *fingerprint, int64_t first_missing,
                 struct forward *f, struct weights *weights, struct resume *r, int64_t *start)
{
    int err = OK, local = OK, is_read = 0;
    const struct corpus *c = f->corpus;
    *r = (struct resume){.comm = comm,
                         .out = out,
                         .fingerprint = fingerprint,
                         .every = every,
                         .kept = {-1, -1},
                         .bytes = c->n_sequences * c->seq_len * f->hidden.cols * (int64_t)sizeof(float)};
    struct hidden_cursor found = {-1, -1};
    if (comm->rank == 0)
        hidden_cursor_read(out, fingerprint, &found);
    TRY(comm_bcast(comm, &found, sizeof found, 0));
    const int64_t candidates[] = {found.layer, found.previous};
    for (int i = 0; i < 2 && !is_read; i++) {
        if (candidates[i] < 0 || candidates[i] >= first_missing)
            continue;
        TRY(try_generation(r, f, candidates[i], &is_read));
        if (is_read)
            r->kept.layer = candidates[i];
    }
    *start = r->kept.layer + 1;
    r->before = r->kept.layer;
    if (is_read)
        log_info("the hidden states after layer %lld are there: the model runs from layer %lld on",
                 (long long)r->kept.layer, (long long)*start);
    if (comm->rank == 0)
        local = hidden_remove(out, r->kept.layer, -1);
    if (!is_read && !local && f->keeps)
        local = forward_embed(f, weights);
    TRY(comm_agree(comm, local));
out:
    return err;
}

/* ---- to disk ------------------------------------------------------------------------------------------------------- */

static int write_block(const struct resume *r, const struct forward *f, int64_t l, int64_t block, float *piece)
{
    int err = OK;
    struct backend *be = r->comm->be;
    const struct mat rows = forward_rows(f, block);
    const struct hidden_id id = id_of(r, &rows, l, block);
    const int64_t step = piece_rows(rows.cols);
    struct store_writer *writer = NULL;
    TRY(hidden_create(&id, &writer));
    for (int64_t row = 0; row < rows.rows; row += step) {
        const struct mat from = mat_rows(&rows, row, min_i64(rows.rows - row, step));
        TRY(be->ops->get(be, piece, from.data, mat_bytes(&from)));
        TRY(hidden_put(writer, row, from.rows, piece));
    }
    err = store_publish(writer);
    writer = NULL;
out:
    store_discard(writer);
    return err;
}

/* This rank's super-blocks. Rank-local. */
static int write_generation(const struct resume *r, const struct forward *f, int64_t l)
{
    int err = OK;
    float *piece = malloc((size_t)(piece_rows(f->hidden.cols) * f->hidden.cols) * sizeof *piece);
    if (!piece)
        FAIL(ERR_NOMEM, "a piece of hidden states");
    for (int64_t b = f->blocks.begin; f->keeps && b < f->blocks.end; b++)
        TRY(write_block(r, f, l, b, piece));
out:
    free(piece);
    return err;
}

static int is_due(const struct resume *r, int64_t l)
{
    const double save_s = r->save_s > 0 ? r->save_s : (double)r->bytes / disk_rate;
    return r->every > 0 ? (l + 1) / r->every > (r->before + 1) / r->every : r->replay_s > WORTH * save_s;
}

/* Rank 0, before there are three generations: the older one goes first. A disk that has no room for another isn't filled. */
static int has_room(struct resume *r, int *yes)
{
    int err = OK;
    struct statvfs fs;
    char text[BYTES_TEXT];
    TRY(hidden_remove(r->out, r->kept.layer, -1));
    *yes = statvfs(r->out, &fs) != 0 || (double)fs.f_bavail * (double)fs.f_frsize > 1.05 * (double)r->bytes + 1e6;
    if (!*yes && !r->is_full++)
        log_warn("no room on the disk of %s for %s of hidden states: a resume will run finished layers again", r->out,
                 format_bytes((double)r->bytes, text, sizeof text));
out:
    return err;
}

int resume_keep(struct resume *r, const struct forward *f, int64_t l, double replay_s, int stopping, int *is_kept)
{
    int err = OK, local = OK, due = 0;
    const double start = now_s();
    *is_kept = 0;
    r->replay_s += replay_s;
    if (r->every == HIDDEN_NEVER)
        goto out;
    if (r->comm->rank == 0 && (stopping || is_due(r, l)))
        local = has_room(r, &due);
    r->before = l;
    TRY(comm_agree(r->comm, local));
    TRY(comm_bcast(r->comm, &due, sizeof due, 0));
    if (!due)
        goto out;
    local = write_generation(r, f, l);
    if (!local && r->publication)
        local = publication_wait(r->publication);
    TRY(comm_agree(r->comm, local));
    r->kept = (struct hidden_cursor){l, r->kept.layer};
    if (r->comm->rank == 0)
        local = hidden_cursor_publish(r->out, r->fingerprint, &r->kept);
    TRY(comm_agree(r->comm, local));
    r->replay_s = 0;
    r->save_s = now_s() - start;
    *is_kept = 1;
out:
    return err;
}
