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

/* Elements [at, at + n) of the triangle, all of which are here. */
static int get_piece(struct backend *be, const struct moment *m, int64_t at, int64_t n, int64_t *piece)
{
    int err = OK;
    const int64_t begin = at - packed_elements(m->row0);
    TRY(be->ops->get(be, piece, (const int64_t *)m->acc.data + begin, (size_t)n * sizeof *piece));
    TRY(buf_page_out(&m->acc_buf, (size_t)begin * sizeof *piece, (size_t)n * sizeof *piece));
out:
    return err;
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

/* Elements of a group's triangle that rank p has: its share, or what belongs to one owner (>= 0) whole. */
static struct range elements_of(const struct covariance *cov, int64_t group, int owner, int p)
{
    const int64_t d = cov->slices->group[group].d_in;
    const struct range rows = owner < 0    ? moment_share(d, p, cov->comm->size)
                              : p == owner ? (struct range){0, d}
                                           : (struct range){0, 0};
    return (struct range){packed_elements(rows.begin), packed_elements(rows.end)};
}

/* Elements [at, at + n) on root, each part from the rank that has it. *local: what went wrong on this rank. */
static int pass_piece(const struct covariance *cov, int64_t group, int owner, int root, int64_t at, int64_t n,
                      struct passage *p, int *local)
{
    int err = OK;
    struct comm *comm = cov->comm;
    for (int from = 0; from < comm->size; from++) {
        const struct range has = elements_of(cov, group, owner, from);
        const int64_t begin = max_i64(at, has.begin), end = min_i64(at + n, has.end);
        if (begin >= end)
            continue;
        if (comm->rank == from && !*local)
            *local = get_piece(comm->be, &cov->moment[group], begin, end - begin, p->piece + (begin - at));
        TRY(pass(comm, from, root, p->piece + (begin - at), (size_t)(end - begin) * sizeof *p->piece));
    }
out:
    return err;
}

/* One group's: every rank has a share, or `owner` (>= 0) all. */
static int write_group(const struct covariance *cov, int64_t group, int owner, int root, struct store_writer *writer,
                       struct passage *p, int *local)
{
    int err = OK;
    struct comm *comm = cov->comm;
    const struct group_id id = cov->slices->group[group].id;
    const int64_t d = cov->slices->group[group].d_in, n = packed_elements(d);
    const int from = owner < 0 ? root : owner; /* of exponents, which all who have sums have */
    if (comm->rank == from && !*local)
        *local = get_exponents(comm->be, &cov->moment[group], p);
    TRY(pass(comm, from, root, p->wide, (size_t)d * sizeof *p->wide));
    if (comm->rank == root && !*local)
        *local = stats_put_exponents(writer, id, d, p->wide);
    for (int64_t at = 0; at < n; at += PIECE_ELEMENTS) {
        const int64_t k = min_i64(n - at, PIECE_ELEMENTS);
        TRY(pass_piece(cov, group, owner, root, at, k, p, local));
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

int kept_write(const struct covariance *cov, const char *dir, int root, const struct stats_origin *origin,
               struct publication *publication)
{
    int err = OK;
    struct comm *comm = cov->comm;
    const struct slices *s = cov->slices;
    struct store_writer *writer = NULL;
    struct passage p = {0};
    struct stats_facts facts;
    struct store_sealed sealed;
    stats_plan(s->config, s->layer, origin, MOMENT_SHIFT, &facts);
    int local = passage_create(s, &p);
    if (comm->rank == root && !local)
        local = make_folder(dir);
    if (comm->rank == root && !local)
        local = stats_create(dir, &facts, &writer);
    TRY(comm_agree(comm, local));
    for (int64_t i = 0; i < s->n_groups; i++) {
        const int64_t expert = s->group[i].id.expert;
        TRY(write_group(cov, i, expert < 0 ? -1 : slices_owner(s, expert), root, writer, &p, &local));
    }
    if (comm->rank == root && cov->tokens && !local)
        local = stats_put_experts(writer, s->config->n_experts, cov->tokens, cov->gates);
    TRY(comm_agree(comm, local));
    if (comm->rank == root) {
        local = store_seal(writer, &sealed);
        writer = NULL;
    }
    TRY(comm_agree(comm, local));
    TRY(publication_begin(publication, comm, root, &sealed));
out:
    store_discard(writer);
    passage_free(&p);
    return err;
}

/* ---- and back ------------------------------------------------------------------------------------------------------ */

/* Exponents and an empty sum. */
static int read_shape(struct stats_file *file, struct covariance *cov, int64_t group, struct range rows,
                      struct passage *p)
{
    int err = OK;
    const struct slice_group *g = &cov->slices->group[group];
    const struct stats_origin *o = &stats_facts(file)->origin;
    const int64_t tokens = g->id.expert >= 0 ? cov->tokens[g->id.expert] : o->n_sequences * o->seq_len;
    TRY(stats_read_exponents(file, g->id, p->wide));
    for (int64_t j = 0; j < g->d_in; j++)
        p->exp[j] = (int32_t)p->wide[j];
    TRY(moment_create(cov->comm->be, g->d_in, rows, p->exp, (int)stats_facts(file)->shift, tokens,
                      &cov->moment[group]));
out:
    return err;
}

/* These rows of a group's sum. Rank-local. */
static int read_group(struct stats_file *file, struct covariance *cov, int64_t group, struct range rows,
                      struct passage *p)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    const struct slice_group *g = &cov->slices->group[group];
    const int64_t first = packed_elements(rows.begin), last = packed_elements(rows.end);
    struct moment *m = &cov->moment[group];
    TRY(read_shape(file, cov, group, rows, p));
    for (int64_t at = first; at < last; at += PIECE_ELEMENTS) {
        const int64_t k = min_i64(last - at, PIECE_ELEMENTS);
        TRY(stats_read_moment(file, g->id, at, k, p->piece));
        TRY(be->ops->put(be, (int64_t *)m->acc.data + (at - first), p->piece, (size_t)k * sizeof *p->piece));
        TRY(buf_page_out(&m->acc_buf, (size_t)(at - first) * sizeof *p->piece, (size_t)k * sizeof *p->piece));
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
    int local = covariance_create(slices, corpus, cov);
    local = local ? local : passage_create(slices, &p);
    local = local ? local : open_layer(slices, dir, fingerprint, &file);
    if (!local && cov->tokens)
        local = stats_read_experts(file, cov->tokens, cov->gates);
    for (int64_t i = 0; i < slices->n_groups && !local; i++) {
        const int64_t expert = slices->group[i].id.expert, d = slices->group[i].d_in;
        if (expert < 0)
            local = read_group(file, cov, i, moment_share(d, comm->rank, comm->size), &p);
        else if (slices_owner(slices, expert) == comm->rank)
            local = read_group(file, cov, i, (struct range){0, d}, &p);
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
