/* SPDX-License-Identifier: Apache-2.0
 * Kept: see kept.h. */
#include "calib/kept.h"

#include "base/err.h"
#include "base/file.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { TAG_MOMENT = 19, PIECE_ELEMENTS = 128 * STATS_BLOCK_ELEMENTS };

/* Host room for what passes between device, ranks and disk. */
struct passage {
    int64_t *piece; /* [PIECE_ELEMENTS] */
    int64_t *wide;  /* [d], of the widest group: exponents as in the file, */
    int32_t *exp;   /* and as the device has them */
};

static void passage_free(struct passage *p)
{
    free(p->piece);
    free(p->wide);
    free(p->exp);
}

static int passage_create(const struct slices *slices, struct passage *p)
{
    int err = OK;
    int64_t d = 1;
    for (int64_t i = 0; i < slices->n_groups; i++)
        d = max_i64(d, slices->group[i].d_in);
    p->piece = malloc(PIECE_ELEMENTS * sizeof *p->piece);
    p->wide = malloc((size_t)d * sizeof *p->wide);
    p->exp = malloc((size_t)d * sizeof *p->exp);
    if (!p->piece || !p->wide || !p->exp)
        FAIL(ERR_NOMEM, "a piece of a second moment");
out:
    return err;
}

/* ---- to disk ------------------------------------------------------------------------------------------------------- */

static int get_exponents(struct backend *be, const struct moment *m, struct passage *p)
{
    int err = OK;
    TRY(be->ops->get(be, p->exp, m->exp.data, (size_t)m->d * sizeof *p->exp));
    for (int64_t j = 0; j < m->d; j++)
        p->wide[j] = p->exp[j];
out:
    return err;
}

static int get_piece(struct backend *be, const struct moment *m, int64_t at, int64_t n, struct passage *p)
{
    return be->ops->get(be, p->piece, (int64_t *)m->acc.data + at, (size_t)n * sizeof *p->piece);
}

/* From the rank that has it to root, if that is another: one that failed goes on sending, so that nobody waits. */
static int pass(struct comm *comm, int from, int root, void *data, size_t bytes)
{
    int err = OK;
    if (comm->rank == from && from != root)
        TRY(comm_send(comm, data, bytes, root, TAG_MOMENT));
    if (comm->rank == root && from != root)
        TRY(comm_recv(comm, data, bytes, from, TAG_MOMENT));
out:
    return err;
}

/* One group's, which rank `from` has. */
static int write_group(const struct covariance *cov, int64_t group, int from, int root, struct store_writer *writer,
                       struct passage *p, int *local)
{
    int err = OK;
    struct comm *comm = cov->comm;
    const struct group_id id = cov->slices->group[group].id;
    const struct moment *m = &cov->moment[group];
    const int64_t d = cov->slices->group[group].d_in, n = d * (d + 1) / 2;
    if (comm->rank == from && !*local)
        *local = get_exponents(comm->be, m, p);
    TRY(pass(comm, from, root, p->wide, (size_t)d * sizeof *p->wide));
    if (comm->rank == root && !*local)
        *local = stats_put_exponents(writer, id, d, p->wide);
    for (int64_t at = 0; at < n; at += PIECE_ELEMENTS) {
        const int64_t k = min_i64(n - at, PIECE_ELEMENTS);
        if (comm->rank == from && !*local)
            *local = get_piece(comm->be, m, at, k, p);
        TRY(pass(comm, from, root, p->piece, (size_t)k * sizeof *p->piece));
        if (comm->rank == root && !*local)
            *local = stats_put_moment(writer, id, at, k, p->piece);
    }
out:
    return err;
}

static int make_folder(const char *dir)
{
    int err = OK;
    char path[PATH_MAX];
    TRY(file_join(path, sizeof path, dir, "stats"));
    TRY(file_make_dirs(path));
out:
    return err;
}

int kept_write(const struct covariance *cov, const char *dir, int root, const struct stats_origin *origin)
{
    int err = OK;
    struct comm *comm = cov->comm;
    const struct slices *s = cov->slices;
    struct store_writer *writer = NULL;
    struct passage p = {0};
    struct stats_facts facts;
    stats_plan(s->config, s->layer, origin, MOMENT_SHIFT, &facts);
    int local = passage_create(s, &p);
    if (comm->rank == root && !local)
        local = make_folder(dir);
    if (comm->rank == root && !local)
        local = stats_create(dir, &facts, &writer);
    TRY(comm_agree(comm, local));
    for (int64_t i = 0; i < s->n_groups; i++) {
        const int64_t expert = s->group[i].id.expert;
        TRY(write_group(cov, i, expert < 0 ? root : slices_owner(s, expert), root, writer, &p, &local));
    }
    if (comm->rank == root && cov->tokens && !local)
        local = stats_put_experts(writer, s->config->n_experts, cov->tokens, cov->gates);
    TRY(comm_agree(comm, local));
    if (comm->rank == root) {
        local = store_publish(writer);
        writer = NULL;
    }
    TRY(comm_agree(comm, local));
out:
    store_discard(writer);
    passage_free(&p);
    return err;
}

/* ---- and back ------------------------------------------------------------------------------------------------------ */

/* Exponents and an empty sum. Rank-local. */
static int read_shape(struct stats_file *file, struct covariance *cov, int64_t group, struct passage *p)
{
    int err = OK;
    const struct slice_group *g = &cov->slices->group[group];
    const struct stats_origin *o = &stats_facts(file)->origin;
    const int64_t tokens = g->id.expert >= 0 ? cov->tokens[g->id.expert] : o->n_sequences * o->seq_len;
    TRY(stats_read_exponents(file, g->id, p->wide));
    for (int64_t j = 0; j < g->d_in; j++)
        p->exp[j] = (int32_t)p->wide[j];
    TRY(moment_create(cov->comm->be, g->d_in, p->exp, (int)stats_facts(file)->shift, tokens, &cov->moment[group]));
out:
    return err;
}

static int put_piece(struct backend *be, struct moment *m, int64_t at, int64_t n, const struct passage *p)
{
    return be->ops->put(be, (int64_t *)m->acc.data + at, p->piece, (size_t)n * sizeof *p->piece);
}

/* A group's sum: of all ranks (root reads and tells), or of this one alone (root < 0). *local: what went wrong on this rank. */
static int read_group(struct stats_file *file, struct covariance *cov, int64_t group, int root, struct passage *p,
                      int *local)
{
    int err = OK;
    struct comm *comm = cov->comm;
    const struct slice_group *g = &cov->slices->group[group];
    const int64_t n = g->d_in * (g->d_in + 1) / 2;
    if (!*local)
        *local = read_shape(file, cov, group, p);
    for (int64_t at = 0; at < n; at += PIECE_ELEMENTS) {
        const int64_t k = min_i64(n - at, PIECE_ELEMENTS);
        if ((root < 0 || comm->rank == root) && !*local)
            *local = stats_read_moment(file, g->id, at, k, p->piece);
        if (root >= 0)
            TRY(comm_bcast(comm, p->piece, (size_t)k * sizeof *p->piece, root));
        if (!*local)
            *local = put_piece(comm->be, &cov->moment[group], at, k, p);
    }
out:
    return err;
}

/* Opens the file, and finds it of the statistics that were begun with. Rank-local. */
static int open_layer(const struct slices *slices, const char *dir, const char *fingerprint, struct stats_file **file)
{
    int err = OK;
    char found[65];
    TRY(stats_open(dir, slices->layer, slices->config, file));
    TRY(stats_fingerprint(&stats_facts(*file)->origin, found));
    if (strcmp(found, fingerprint) != 0)
        FAIL(ERR_FORMAT, "%s/stats/%04lld.h5: statistics of another checkpoint, text or machine than those of layer 0",
             dir, (long long)slices->layer);
out:
    return err;
}

int kept_read(const struct slices *slices, const struct corpus *corpus, const char *dir, const char *fingerprint,
              struct covariance *cov)
{
    int err = OK;
    struct comm *comm = slices->comm;
    struct stats_file *file = NULL;
    struct passage p = {0};
    const int root = (int)(slices->layer % comm->size);
    int local = covariance_create(slices, corpus, cov);
    local = local ? local : passage_create(slices, &p);
    local = local ? local : open_layer(slices, dir, fingerprint, &file);
    if (!local && cov->tokens)
        local = stats_read_experts(file, cov->tokens, cov->gates);
    TRY(comm_agree(comm, local));
    for (int64_t i = 0; i < slices->n_groups; i++) {
        const int64_t expert = slices->group[i].id.expert;
        if (expert < 0)
            TRY(read_group(file, cov, i, root, &p, &local));
        else if (slices_owner(slices, expert) == comm->rank)
            TRY(read_group(file, cov, i, -1, &p, &local));
        else
            cov->moment[i].n_tokens = cov->tokens[expert];
    }
    TRY(comm_agree(comm, local));
out:
    stats_close(file);
    passage_free(&p);
    if (err)
        covariance_free(cov);
    return err;
}
