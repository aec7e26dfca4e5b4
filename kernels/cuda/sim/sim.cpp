/* SPDX-License-Identifier: Apache-2.0
 * Launches on the host: see sim.h. */
#include "kernels/cuda/sim/sim.h"

#include "kernels/cuda/sim/fiber.h"
#include "kernels/cuda/sim/races.h"

#include <dlfcn.h>
#include <link.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    MAX_THREADS = 1024,
    MAX_SHARED = 227 << 10, /* what a block can have on sm_90 */
    PHASE = 16, /* dynamic shared memory begins here past a round address: on the card it may follow static one */
    WARP = 32,
    N_SLOTS = 2 * WARP + 1 /* every lane may hold one result while it fills another */
};

enum what { FRESH, READY, AT_BARRIER, AT_WARP, RETURNED };

/* One call of the warp primitive: filled while lanes arrive, held by each until its next. */
struct slot {
    uint32_t mask, arrived, held; /* free: held == 0 */
    size_t bytes, capacity;
    const char *file;
    int line;
    unsigned char *deposits; /* [WARP][bytes] */
};

struct lane {
    struct sim_thread self; /* first: sim_self() is the lane */
    enum what what;
    struct fiber *fiber;
    const char *file; /* where it waits */
    int line;
    uint32_t mask;
    struct slot *holds; /* result of its last warp primitive */
    uint32_t syncwarps; /* of the whole warp */
    struct {
        void *p;
        size_t bytes;
        int used; /* by this kernel */
    } storage[N_SIM_STORAGE];
};

/* What an OS thread runs blocks with: made at its first launch, kept for the next. */
struct worker {
    struct fiber *self;
    struct fiber *free_fibers[MAX_THREADS];
    int n_free;
    struct lane lanes[MAX_THREADS];
    struct slot slots[MAX_THREADS / WARP][N_SLOTS];
    struct lane *running;
    unsigned char *statics; /* this OS thread's copy of the module's thread_local data: every __shared__ array */
    size_t statics_bytes;

    /* the present launch */
    const char *kernel;
    void (*body)(void *);
    void *closure;
    const int *order;    /* of threads in a block */
    int fill_each_block; /* static shared memory, which costs a memset of every kernel's: else once a launch */
    int n_threads;
    unsigned char *shared;
    size_t shared_bytes;

    /* the present block */
    int next; /* order[next] is the first thread that hasn't started */
    int n_returned, n_at_barrier;
    uint32_t launch_epoch, block_epoch, epoch; /* races.h */
};

/* The simulator's only thread-local variable: fill_statics saves it. */
static thread_local struct worker *mine;

/* ---- ending on a bug --------------------------------------------------------------------------------------------- */

static void describe(const struct lane *lane)
{
    const struct sim_thread *t = &lane->self;
    fprintf(stderr, "  block (%u, %u, %u) thread (%u, %u, %u) lane %d: ", t->block.x, t->block.y, t->block.z,
            t->thread.x, t->thread.y, t->thread.z, t->linear % WARP);
    if (lane->what == AT_BARRIER)
        fprintf(stderr, "waits in __syncthreads, %s:%d\n", lane->file, lane->line);
    else if (lane->what == AT_WARP)
        fprintf(stderr, "waits for lanes %08x of its warp, %s:%d\n", lane->mask, lane->file, lane->line);
    else
        fprintf(stderr, "%s\n", lane->what == RETURNED ? "has returned" : "runs");
}

static void __attribute__((noreturn))
bug(const char *kernel, const char *text, const struct lane *a, const struct lane *b)
{
    fprintf(stderr, "glowq: cuda:sim: kernel %s: %s\n", kernel, text);
    if (a)
        describe(a);
    if (b)
        describe(b);
    abort();
}

/* Nobody can go on: one line for each kind of wait is enough to see why. */
static void deadlock(struct worker *w)
{
    const struct lane *shown[8];
    int n = 0;
    fprintf(stderr, "glowq: cuda:sim: kernel %s: deadlock: threads wait for others that wait elsewhere or returned\n",
            w->kernel);
    for (int i = 0; i < w->n_threads && n < 8; i++) {
        const struct lane *lane = &w->lanes[i];
        int known = 0;
        for (int j = 0; j < n; j++)
            known |= shown[j]->what == lane->what && (lane->what == RETURNED || shown[j]->line == lane->line);
        if (!known)
            describe(shown[n++] = lane);
    }
    abort();
}

/* ---- a worker ---------------------------------------------------------------------------------------------------- */

static pthread_key_t worker_key;

static void worker_free(void *p)
{
    struct worker *w = (struct worker *)p;
    for (int i = 0; i < w->n_free; i++)
        fiber_free(w->free_fibers[i]);
    for (int i = 0; i < MAX_THREADS / WARP; i++)
        for (int j = 0; j < N_SLOTS; j++)
            free(w->slots[i][j].deposits);
    for (int i = 0; i < MAX_THREADS; i++)
        for (int j = 0; j < N_SIM_STORAGE; j++)
            free(w->lanes[i].storage[j].p);
    fiber_free(w->self);
    free(w);
}

static void make_key(void)
{
    if (pthread_key_create(&worker_key, worker_free) != 0)
        abort();
}

/* The thread-local data of the object that holds `mine`. */
static int find_statics(struct dl_phdr_info *info, size_t, void *context)
{
    struct worker *w = (struct worker *)context;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        unsigned char *data = (unsigned char *)info->dlpi_tls_data;
        if (part->p_type != PT_TLS || !data)
            continue;
        if ((unsigned char *)&mine >= data && (unsigned char *)&mine < data + part->p_memsz) {
            w->statics = data;
            w->statics_bytes = part->p_memsz;
            return 1;
        }
    }
    return 0;
}

static struct worker *worker_get(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (mine)
        return mine;
    pthread_once(&once, make_key);
    mine = (struct worker *)calloc(1, sizeof *mine);
    if (!mine || !(mine->self = fiber_create_self()))
        bug("?", "out of memory", NULL, NULL);
    pthread_setspecific(worker_key, mine);
    dl_iterate_phdr(find_statics, mine);
    return mine;
}

/* Static __shared__ arrays are thread-local variables; among them stands the simulator's own, which is restored. (noinline:
 * `mine` must be read anew behind it.) */
static void __attribute__((noinline)) fill_statics(struct worker *w)
{
    memset(w->statics, 0xff, w->statics_bytes);
    mine = w;
}

int sim_now_of(struct sim_now *now, const void *address)
{
    const struct worker *w = mine;
    if (!w || !w->running)
        return 0;
    const struct lane *lane = w->running;
    int is_own = fiber_holds(lane->fiber, address);
    for (int i = 0; i < N_SIM_STORAGE; i++) {
        const char *storage = (const char *)lane->storage[i].p, *p = (const char *)address;
        is_own |= p >= storage && p < storage + lane->storage[i].bytes;
    }
    *now = {w->kernel,  w->launch_epoch, w->block_epoch,   w->epoch, lane->self.linear, lane->syncwarps, w->shared,
            w->statics, w->shared_bytes, w->statics_bytes, is_own};
    return 1;
}

int sim_is_reordered(void)
{
    return mine->fill_each_block;
}

void sim_race(const char *what, int other, const void *here, const void *there)
{
    const struct worker *w = mine;
    const void *const places[] = {here, there};
    for (const void *at : places) {
        Dl_info of;
        if (at && dladdr(at, &of))
            fprintf(stderr, "glowq: cuda:sim: %s: addr2line -ife %s %#zx\n", at == here ? "here" : "there",
                    of.dli_fname, (size_t)((const char *)at - (const char *)of.dli_fbase) - 1);
    }
    bug(w->kernel, what, w->running, other < 0 ? NULL : &w->lanes[other]);
}

const struct sim_thread *sim_self(void)
{
    return &mine->running->self;
}

void *sim_shared(void)
{
    return mine->shared;
}

void *sim_storage(enum sim_storage_kind kind, size_t bytes)
{
    struct worker *w = mine;
    auto &storage = w->running->storage[kind];
    if (bytes > storage.bytes) {
        free(storage.p);
        storage.bytes = bytes;
        if (!(storage.p = malloc(bytes)))
            bug(w->kernel, "out of memory", NULL, NULL);
    }
    if (!storage.used)
        memset(storage.p, 0, bytes);
    storage.used = 1;
    return storage.p;
}

void sim_bug(const char *text, const char *file, int line)
{
    struct worker *w = mine;
    if (file)
        fprintf(stderr, "glowq: cuda:sim: %s:%d\n", file, line);
    bug(w->kernel, text, w->running, NULL);
}

/* Each file of a kernel has its name once, mostly. */
static int is_other_place(const struct lane *lane, const char *file, int line)
{
    return lane->line != line || (lane->file != file && strcmp(lane->file, file) != 0);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static void wait_here(struct worker *w, struct lane *lane, enum what what)
{
    lane->what = what;
    fiber_switch(lane->fiber, w->self);
}

static void open_barrier(struct worker *w)
{
    for (int i = 0; i < w->n_threads; i++)
        if (w->lanes[i].what == AT_BARRIER)
            w->lanes[i].what = READY;
    w->n_at_barrier = 0;
    w->epoch++;
}

void sim_barrier(const char *file, int line)
{
    struct worker *w = mine;
    struct lane *lane = w->running;
    lane->file = file;
    lane->line = line;
    for (int i = 0; w->n_at_barrier > 0; i++)
        if (w->lanes[i].what == AT_BARRIER) {
            if (is_other_place(&w->lanes[i], file, line)) {
                lane->what = AT_BARRIER;
                bug(w->kernel, "divergent barrier: threads meet in different __syncthreads", &w->lanes[i], lane);
            }
            break;
        }
    if (++w->n_at_barrier + w->n_returned == w->n_threads) {
        open_barrier(w); /* this one goes on at once */
        return;
    }
    wait_here(w, lane, AT_BARRIER);
}

static void let_go(struct lane *lane)
{
    if (lane->holds)
        lane->holds->held &= ~(1u << lane->self.linear % WARP);
    lane->holds = NULL;
}

/* The call that this lane joins, or a fresh one. Calls of other masks are no affair of its own, even where they name it: parts of
 * a warp may go their own ways and meet later. Who never comes is found as a deadlock. */
static struct slot *join(struct worker *w, struct lane *lane, size_t bytes)
{
    struct slot *slots = w->slots[lane->self.linear / WARP], *s = NULL;
    for (int i = 0; i < N_SLOTS; i++) {
        if (slots[i].held && slots[i].arrived != slots[i].mask && slots[i].mask == lane->mask) {
            const struct lane *other = lane - lane->self.linear % WARP + __builtin_ctz(slots[i].arrived);
            if (slots[i].bytes != bytes || is_other_place(lane, slots[i].file, slots[i].line)) {
                lane->what = AT_WARP;
                bug(w->kernel, "divergent warp: lanes meet in different warp primitives", other, lane);
            }
            return &slots[i];
        }
        if (!slots[i].held && !s)
            s = &slots[i];
    }
    if (bytes * WARP > s->capacity || !s->deposits) {
        free(s->deposits);
        s->capacity = bytes * WARP + 64;
        if (!(s->deposits = (unsigned char *)malloc(s->capacity)))
            bug(w->kernel, "out of memory", NULL, NULL);
    }
    memset(s->deposits, 0xff, bytes * WARP);
    s->mask = s->held = lane->mask;
    s->arrived = 0;
    s->bytes = bytes;
    s->file = lane->file;
    s->line = lane->line;
    return s;
}

const void *sim_warp_gather(uint32_t mask, const void *mine_here, size_t bytes, const char *file, int line)
{
    struct worker *w = mine;
    struct lane *lane = w->running, *warp = lane - lane->self.linear % WARP;
    const int l = lane->self.linear % WARP;
    const int n_lanes = (int)min_i64(WARP, w->n_threads - (lane->self.linear - l));
    lane->file = file;
    lane->line = line;
    lane->mask = mask;
    if (!(mask >> l & 1)) {
        lane->what = AT_WARP;
        bug(w->kernel, "a lane called a warp primitive without being in its mask", lane, NULL);
    }
    if (n_lanes < WARP && mask >> n_lanes) {
        lane->what = AT_WARP;
        bug(w->kernel, "the mask names lanes that the block doesn't have: it ends within this warp", lane, NULL);
    }
    let_go(lane);
    struct slot *s = join(w, lane, bytes);
    if (bytes > 0)
        memcpy(s->deposits + (size_t)l * bytes, mine_here, bytes);
    s->arrived |= 1u << l;
    lane->holds = s;
    if (s->arrived != s->mask)
        wait_here(w, lane, AT_WARP);
    else
        for (int i = 0; i < n_lanes; i++)
            if (i != l && mask >> i & 1)
                warp[i].what = READY;
    lane->syncwarps += bytes == 0 && mask == 0xffffffffu;
    return s->deposits;
}

const void *sim_warp_from(uint32_t mask, const void *mine_here, size_t bytes, int from, const char *file, int line)
{
    struct worker *w = mine;
    if (from < 0 || from >= WARP || !(mask >> from & 1)) {
        struct lane *lane = w->running;
        lane->file = file;
        lane->line = line;
        lane->mask = mask;
        lane->what = AT_WARP;
        bug(w->kernel, "a shuffle reads a lane outside its mask", lane, NULL);
    }
    return (const unsigned char *)sim_warp_gather(mask, mine_here, bytes, file, line) + (size_t)from * bytes;
}

/* ---- running a block --------------------------------------------------------------------------------------------- */

/* A fiber runs fresh threads one after another, as long as none of them waits. */
static void run_threads(void *context)
{
    struct worker *w = (struct worker *)context;
    for (;;) {
        struct lane *lane = w->running;
        w->body(w->closure);
        let_go(lane);
        lane->what = RETURNED;
        w->n_returned++;
        if (w->n_at_barrier > 0 && w->n_at_barrier + w->n_returned == w->n_threads)
            open_barrier(w);
        if (w->next < w->n_threads) {
            struct lane *fresh = &w->lanes[w->order[w->next++]];
            fresh->fiber = lane->fiber;
            fresh->what = READY;
            w->running = fresh;
        } else {
            w->free_fibers[w->n_free++] = lane->fiber;
            fiber_switch(lane->fiber, w->self);
        }
    }
}

static void resume(struct worker *w, struct lane *lane)
{
    if (lane->what == FRESH) {
        lane->fiber = w->n_free > 0 ? w->free_fibers[--w->n_free] : fiber_create(run_threads, w);
        if (!lane->fiber)
            bug(w->kernel, "no memory for a thread's stack", lane, NULL);
        lane->what = READY;
        w->next++;
    }
    w->running = lane;
    fiber_switch(w->self, lane->fiber);
}

static void run_block(struct worker *w, dim3 block, dim3 size, dim3 grid)
{
    if (w->shared_bytes > 0)
        memset(w->shared, 0xff, w->shared_bytes);
    if (w->fill_each_block)
        fill_statics(w);
    for (int i = 0; i < w->n_threads; i++) {
        struct lane *lane = &w->lanes[i];
        const unsigned u = (unsigned)i;
        lane->self = {dim3(u % size.x, u / size.x % size.y, u / size.x / size.y), block, size, grid, i};
        lane->what = FRESH;
        lane->holds = NULL;
        for (int j = 0; j < N_SIM_STORAGE; j++)
            lane->storage[j].used = 0;
        lane->syncwarps = 0;
    }
    w->block_epoch = ++w->epoch;
    w->next = w->n_returned = w->n_at_barrier = 0;
    while (w->n_returned < w->n_threads) {
        int any = 0;
        /* warp by warp, each until none of its lanes can go on */
        for (int first = 0, end; first < w->n_threads; first = end) {
            int again;
            for (end = first; end < w->n_threads && w->order[end] / WARP == w->order[first] / WARP;)
                end++;
            do {
                again = 0;
                for (int i = first; i < end; i++) {
                    struct lane *lane = &w->lanes[w->order[i]];
                    if (lane->what == READY || lane->what == FRESH) {
                        resume(w, lane);
                        again = any = 1;
                    }
                }
            } while (again);
        }
        if (!any)
            deadlock(w);
    }
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

enum order { FORWARD, REVERSE, SHUFFLE };

static enum order order_asked(void)
{
    const char *text = getenv("GLOWQ_SIM_ORDER");
    if (text && strcmp(text, "reverse") == 0)
        return REVERSE;
    return text && strcmp(text, "shuffle") == 0 ? SHUFFLE : FORWARD;
}

/* A permutation of 0..n-1. The shuffled one differs from launch to launch and is the same in every run of the program. */
static void permute(int *p, int n, enum order order, uint64_t *seed)
{
    for (int i = 0; i < n; i++)
        p[i] = order == REVERSE ? n - 1 - i : i;
    for (int i = n - 1; order == SHUFFLE && i > 0; i--) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        const int j = (int)((*seed >> 33) % (uint64_t)(i + 1)), kept = p[i];
        p[i] = p[j];
        p[j] = kept;
    }
}

static void order_threads(int *order, int n, enum order how)
{
    static uint64_t seed = 1; /* launches come from one OS thread */
    int warps[MAX_THREADS / WARP], lanes[WARP], n_warps = (n + WARP - 1) / WARP, at = 0;
    permute(warps, n_warps, how, &seed);
    permute(lanes, WARP, how, &seed);
    for (int i = 0; i < n_warps; i++)
        for (int j = 0; j < WARP; j++)
            if (warps[i] * WARP + lanes[j] < n)
                order[at++] = warps[i] * WARP + lanes[j];
}

int (*sim_launching)(const struct backend *be, const char *name);

int sim_run(const struct backend *be, const char *name, dim3 grid, dim3 block, size_t shared, void (*body)(void *),
            void *closure)
{
    const uint64_t n_threads = (uint64_t)block.x * block.y * block.z, n_blocks = (uint64_t)grid.x * grid.y * grid.z;
    const enum order how = order_asked();
    int order[MAX_THREADS];
    char text[160];
    if (n_threads == 0 || n_threads > MAX_THREADS || block.z > 64 || shared > MAX_SHARED || n_blocks == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        snprintf(text, sizeof text, "the card refuses a grid of (%u, %u, %u), blocks of (%u, %u, %u), %zu bytes shared",
                 grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
        bug(name, text, NULL, NULL);
    }
    const int err = sim_launching ? sim_launching(be, name) : OK;
    if (err != OK)
        return err;
    order_threads(order, (int)n_threads, how);
#pragma omp parallel num_threads(be->n_threads) if (n_blocks > 1 && !SIM_FINDS_RACES)
    {
        struct worker *w = worker_get();
        void *dynamic = NULL;
        if (shared > 0 && posix_memalign(&dynamic, 1024, PHASE + shared) != 0)
            bug(name, "out of memory", NULL, NULL);
        w->kernel = name;
        w->body = body;
        w->closure = closure;
        w->order = order;
        w->fill_each_block = how != FORWARD;
        w->n_threads = (int)n_threads;
        w->shared = (unsigned char *)dynamic + PHASE;
        w->shared_bytes = shared;
        fill_statics(w);
        w->launch_epoch = ++w->epoch;
#pragma omp for schedule(dynamic)
        for (uint64_t i = 0; i < n_blocks; i++) {
            const uint64_t b = how == REVERSE ? n_blocks - 1 - i : i;
            run_block(w, dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)),
                      block, grid);
        }
        w->running = NULL;
        w->shared = NULL;
        free(dynamic);
    }
    return OK;
}
