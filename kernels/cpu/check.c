/* SPDX-License-Identifier: Apache-2.0
 * "cpu:check": the ops of "cpu" run as late as the contract allows, behind walls: finds on a machine without a GPU what would
 * crash or lie on one with it.
 *
 *   memory    is NaN when new and closed to the host: check_memory.c. Freed memory never opens again.
 *   queue     Ops are recorded with copies of all they read on the host (check_calls.c) and run when somebody waits: get, sync,
 *             host_begin, a factorization. Until then a result isn't there; arguments may be gone; what was freed before an op
 *             that needs it is gone when it runs. The first error of a queued op is the next waiting call's, and drops the
 *             ops between.
 *   steps     The first use of a step is recorded. Each later one runs the record, puts memory back, runs the calls issued
 *             now, and compares the two memories by bytes: a value that the host computed from what changes between steps
 *             would be frozen in a replay, and shows as a difference.
 * Crimes against the contract that no error code can report end the program with their name. */
#include "kernels/cpu/check.h"
#include "kernels/cpu/check_ops.h"
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Memory that the queue holds before it is run without anybody waiting: loading a model would hold it twice. */
enum { QUEUE_BYTES = 64 << 20 };

struct recorded_step {
    struct calls first, again;
    char *before, *replayed; /* images; NULL during the first use */
};

struct check {
    struct region *regions;
    struct calls queue;
    int err;                    /* the first since somebody waited */
    int n_hosts;                /* between host_begin and host_end */
    struct recorded_step *step; /* between step_begin and step_end */
};

static struct check *check_of(struct backend *be)
{
    return ((struct cpu_state *)be->state)->check;
}

__attribute__((noreturn, format(printf, 1, 2))) static void crime(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("glowq: cpu:check: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static void not_in_a_step(struct backend *be, const char *name)
{
    if (check_of(be)->step)
        crime("%s between step_begin and step_end", name);
}

static void not_beside_the_host(struct backend *be, const char *name)
{
    if (check_of(be)->n_hosts > 0)
        crime("%s between host_begin and host_end", name);
}

/* ---- queue ------------------------------------------------------------------------------------------------------- */

static int free_run(struct backend *be, const void *args)
{
    void *p;
    memcpy(&p, args, sizeof p);
    region_close(&check_of(be)->regions, p);
    return OK;
}

/* In order; after an error only memory is still freed. */
static void run_calls(struct backend *be, const struct calls *calls)
{
    struct check *check = check_of(be);
    for (const struct call *call = calls->first; call; call = call->next)
        if (check->err == OK || call->run == free_run) {
            int failed = call->run(be, call->args);
            check->err = check->err ? check->err : failed;
        }
}

static void run_queue(struct backend *be)
{
    struct check *check = check_of(be);
    if (!check->queue.first)
        return;
    regions_open(check->regions);
    run_calls(be, &check->queue);
    regions_close(check->regions);
    calls_clear(&check->queue);
}

/* What every waiting call begins with. */
static int wait_for_queue(struct backend *be, const char *name)
{
    struct check *check = check_of(be);
    not_in_a_step(be, name);
    run_queue(be);
    const int err = check->err;
    check->err = OK;
    return err;
}

/* Where calls are recorded now. */
static struct calls *calls_of(struct backend *be, const char *name)
{
    struct check *check = check_of(be);
    not_beside_the_host(be, name);
    if (check->queue.bytes > QUEUE_BYTES)
        run_queue(be);
    if (check->step)
        return check->step->before ? &check->step->again : &check->step->first;
    return &check->queue;
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

#define COMMA ,
#define NOTHING
#define PARAMETER(type, name) type name
#define FIELD(type, name) type name;
#define NAME(type, name) name
#define STORED(type, name) stored->name
/* clang-format off */
#define KEEP(type, name)                                                                                               \
    _Generic(call.name,                                                                                                \
        struct mat *: keep_mat, const struct mat *: keep_mat,                                                          \
        struct packed *: keep_packed, const struct packed *: keep_packed,                                              \
        const struct linear_args *: keep_linear_args, const struct attention_args *: keep_attention_args,              \
        const struct grouped_args *: keep_grouped_args, const struct combine_args *: keep_combine_args,                \
        default: keep_value)(calls, &call.name);
/* clang-format on */

#define DEFINE_CALL(op)                                                                                                \
    struct op##_call {                                                                                                 \
        ARGS_##op(FIELD, NOTHING)                                                                                      \
    };
QUEUED_OPS_WITH_ARRAYS(DEFINE_CALL)

static void put_host(struct backend *be, struct calls *calls, struct put_call *a)
{
    not_in_a_step(be, "put");
    keep_array(calls, &a->host, a->bytes);
}

/* Its draws are other ones each time: what a step would repeat is the first. */
static void sample_host(struct backend *be, struct calls *calls, struct sample_call *a)
{
    not_in_a_step(be, "sample");
    keep_sample_args(calls, &a->args);
}

static void gemm_fixed_host(struct backend *be, struct calls *calls, struct gemm_fixed_call *a)
{
    (void)be;
    keep_array(calls, &a->host_row0, (size_t)(a->n_panels + 1) * sizeof *a->host_row0);
}

/* op_check, the table's entry, records; op_run runs what was recorded. */
#define DEFINE_RECORDED(op, keep_arrays)                                                                               \
    static int op##_run(struct backend *be, const void *args)                                                          \
    {                                                                                                                  \
        const struct op##_call *stored = args;                                                                         \
        return cpu_ops()->op(be, ARGS_##op(STORED, COMMA));                                                            \
    }                                                                                                                  \
    static int op##_check(struct backend *be, ARGS_##op(PARAMETER, COMMA))                                             \
    {                                                                                                                  \
        struct calls *calls = calls_of(be, #op);                                                                       \
        struct op##_call call = {ARGS_##op(NAME, COMMA)};                                                              \
        ARGS_##op(KEEP, NOTHING);                                                                                      \
        keep_arrays;                                                                                                   \
        return calls_add(calls, #op, op##_run, &call, sizeof call);                                                    \
    }
#define DEFINE_QUEUED(op)                                                                                              \
    DEFINE_CALL(op)                                                                                                    \
    DEFINE_RECORDED(op, (void)0)
#define DEFINE_QUEUED_WITH_ARRAYS(op) DEFINE_RECORDED(op, op##_host(be, calls, &call))
QUEUED_OPS(DEFINE_QUEUED)
QUEUED_OPS_WITH_ARRAYS(DEFINE_QUEUED_WITH_ARRAYS)

#define DEFINE_WAITING(op)                                                                                             \
    static int op##_check(struct backend *be, ARGS_##op(PARAMETER, COMMA))                                             \
    {                                                                                                                  \
        int err = OK;                                                                                                  \
        not_beside_the_host(be, #op);                                                                                  \
        TRY(wait_for_queue(be, #op));                                                                                  \
        regions_open(check_of(be)->regions);                                                                           \
        err = cpu_ops()->op(be, ARGS_##op(NAME, COMMA));                                                               \
        regions_close(check_of(be)->regions);                                                                          \
    out:                                                                                                               \
        return err;                                                                                                    \
    }
WAITING_OPS(DEFINE_WAITING)

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static int open_check(struct backend *be)
{
    int err = OK;
    struct check *check = NULL;
    TRY(open_cpu(be));
    be->host_memory = 0; /* comm stages mats as it does a GPU's */
    /* The bits are those of "cpu". */
    char *processor = be->numerics + strlen(be->name);
    memmove(be->numerics + strlen("cpu"), processor, strlen(processor) + 1);
    if (!(check = calloc(1, sizeof *check)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *check);
    ((struct cpu_state *)be->state)->check = check;
out:
    return err;
}

static void close_check(struct backend *be)
{
    struct check *check = be->state ? check_of(be) : NULL;
    if (check) {
        run_queue(be);
        assert(!check->regions); /* every buffer is freed before its backend */
        free(check);
    }
    close_cpu(be);
}

static int alloc_check(struct backend *be, size_t bytes, void **p)
{
    not_in_a_step(be, "alloc");
    return region_create(&check_of(be)->regions, bytes, NULL, p);
}

static int spill_check(struct backend *be, size_t bytes, void **p)
{
    not_in_a_step(be, "spill");
    return region_create(&check_of(be)->regions, bytes, be->spill, p);
}

static void free_check(struct backend *be, void *p, size_t bytes)
{
    struct check *check = check_of(be);
    not_in_a_step(be, "free");
    check->queue.bytes += bytes; /* held until the queue is run */
    if (calls_add(&check->queue, "free", free_run, &p, sizeof p) != OK)
        check->err = ERR_NOMEM;
}

/* The source alone opens, so that a host address that is a device's crashes. */
static int get_check(struct backend *be, void *host, const void *device, size_t bytes)
{
    int err = OK;
    not_beside_the_host(be, "get");
    TRY(wait_for_queue(be, "get"));
    struct region *r = region_of(check_of(be)->regions, device);
    if (r)
        region_open_host(r);
    err = cpu_ops()->get(be, host, device, bytes);
    if (r)
        region_close_host(r);
out:
    return err;
}

static int sync_check(struct backend *be)
{
    not_beside_the_host(be, "sync");
    return wait_for_queue(be, "sync");
}

static void *stream_check(struct backend *be)
{
    return cpu_ops()->stream(be);
}

static int memory_check(struct backend *be, size_t *host_free, size_t *host_total)
{
    return cpu_ops()->memory(be, host_free, host_total);
}

/* Only the region that was asked for opens, so that comm can't stray into another. */
static int host_begin_check(struct backend *be, void *p, size_t bytes, void **host)
{
    int err = OK;
    TRY(wait_for_queue(be, "host_begin"));
    struct check *check = check_of(be);
    struct region *r = region_of(check->regions, p);
    assert(bytes == 0 || (r && (char *)p + bytes <= r->base + r->bytes));
    *host = p;
    check->n_hosts++;
    if (r)
        region_open_host(r);
out:
    return err;
}

static int host_end_check(struct backend *be, void *p, size_t bytes, void *host)
{
    struct check *check = check_of(be);
    struct region *r = region_of(check->regions, p);
    (void)bytes;
    assert(p == host && check->n_hosts > 0);
    (void)host;
    check->n_hosts--;
    if (r)
        region_close_host(r);
    return OK;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static void step_clear(struct recorded_step *step)
{
    free(step->before);
    free(step->replayed);
    step->before = step->replayed = NULL;
    calls_clear(&step->again);
}

static int step_begin_check(struct backend *be, struct step *step, int *host_replayed)
{
    int err = OK;
    struct check *check = check_of(be);
    not_in_a_step(be, "step_begin");
    not_beside_the_host(be, "step_begin");
    *host_replayed = 0;
    run_queue(be);
    const int first = !step->recorded;
    if (first && !(step->recorded = calloc(1, sizeof(struct recorded_step))))
        FAIL(ERR_NOMEM, "cannot record a step");
    struct recorded_step *s = step->recorded;
    if (!first) {
        const size_t bytes = image_bytes(check->regions);
        s->before = malloc(bytes + 1);
        s->replayed = malloc(bytes + 1);
        if (!s->before || !s->replayed) {
            step_clear(s);
            FAIL(ERR_NOMEM, "two images of %zu bytes of device memory", bytes);
        }
        regions_open(check->regions);
        image_save(check->regions, s->before);
        run_calls(be, &s->first);
        image_save(check->regions, s->replayed);
        image_load(check->regions, s->before);
        regions_close(check->regions);
    }
    check->step = s;
out:
    return err;
}

/* The replay left another memory than the calls issued now, and both began with s->before: which op is it whose record and
 * issue, each after the ones before it, first differ? */
__attribute__((noreturn)) static void name_the_frozen_op(struct backend *be, struct recorded_step *s)
{
    const struct region *regions = check_of(be)->regions, *where = NULL;
    const struct call *old = s->first.first, *now = s->again.first;
    char *now_image = malloc(image_bytes(regions) + 1);
    int64_t n = 0, offset = 0;
    if (!now_image)
        crime("a step's replay and its issue differ: a value was frozen on the host");
    memcpy(now_image, s->before, image_bytes(regions));
    for (; old && now && !where; old = old->next, now = now->next, n++) {
        image_load(regions, s->before);
        old->run(be, old->args);
        image_save(regions, s->before);
        image_load(regions, now_image);
        now->run(be, now->args);
        image_save(regions, now_image);
        if ((where = image_compare(regions, s->before, now_image, &offset)))
            crime("a value was frozen on the host: op %lld of a step, recorded as %s, now %s: they differ at byte %lld "
                  "of the %lld bytes at %p",
                  (long long)n, old->name, now->name, (long long)offset,
                  (long long)(where->base + where->bytes - where->p), (void *)where->p);
    }
    crime("a decision was frozen on the host: a step goes on after op %lld with %s, its record with %s", (long long)n,
          now ? now->name : "nothing", old ? old->name : "nothing");
}

static int step_end_check(struct backend *be, struct step *step)
{
    int err = OK;
    struct check *check = check_of(be);
    struct recorded_step *s = check->step;
    if (!s || s != step->recorded)
        crime("step_end without its step_begin");
    check->step = NULL;
    regions_open(check->regions);
    run_calls(be, s->before ? &s->again : &s->first);
    if (s->before && check->err == OK) {
        char *now = malloc(image_bytes(check->regions) + 1);
        int64_t offset;
        if (!now)
            FAIL(ERR_NOMEM, "an image of %zu bytes of device memory", image_bytes(check->regions));
        image_save(check->regions, now);
        if (image_compare(check->regions, s->replayed, now, &offset))
            name_the_frozen_op(be, s);
        free(now);
    }
out:
    regions_close(check->regions);
    step_clear(s);
    return err;
}

static void step_free_check(struct backend *be, struct step *step)
{
    struct recorded_step *s = step->recorded;
    not_in_a_step(be, "step_free");
    if (s) {
        step_clear(s);
        calls_clear(&s->first);
        free(s);
    }
    step->recorded = NULL;
}

/* ---- table ------------------------------------------------------------------------------------------------------- */

#define ENTRY(op) .op = op##_check,

static const struct backend_ops check_table = {
    .open = open_check,
    .close = close_check,
    .alloc = alloc_check,
    .free = free_check,
    .spill = spill_check,
    .unspill = free_check,
    .get = get_check,
    .sync = sync_check,
    .stream = stream_check,
    .memory = memory_check,
    .host_begin = host_begin_check,
    .host_end = host_end_check,
    .step_begin = step_begin_check,
    .step_end = step_end_check,
    .step_free = step_free_check,
    .weight_alloc = weight_alloc_cpu,                                  /* made of alloc and zero */
    QUEUED_OPS(ENTRY) QUEUED_OPS_WITH_ARRAYS(ENTRY) WAITING_OPS(ENTRY) /* the others */
};

const struct backend_ops *cpu_check_ops(void)
{
    return &check_table;
}
