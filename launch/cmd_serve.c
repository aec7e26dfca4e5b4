/* SPDX-License-Identifier: Apache-2.0
 * glowq serve: a model behind an OpenAI-compatible HTTP server, on rank 0 of as many ranks as there are.
 *
 * The thread of MPI runs the engine (all ranks); rank 0 has the HTTP server's threads beside it and a supervisor, who turns
 * signals into a drain and the loss of a rank into 503s: the thread of MPI may then wait for ever for a rank that is gone, so it is
 * the supervisor who ends the process.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "comm/heartbeat.h"
#include "infer/api.h"
#include "infer/engine.h"
#include "infer/http.h"
#include "launch/source.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const struct option_spec table[] = {
    OPT_HEADING("What to serve:"),
    OPT_REQUIRED("model", 'm', "DIR", "Hugging Face or .glowq folder"),
    OPT_STRING("name", 0, "NAME", "what requests and answers call the model; without: the folder's name"),
    OPT_FLAG("no-correction", 0, ".glowq: leave the low-rank correction out (plain low-bit weights)"),
    OPT_FLAG("parse-special", 0,
             "special tokens written in prompts count as tokens; else they are text like any other"),
    OPT_HEADING("To whom:"),
    {.type = OPTION_STRING, .name = "host", .arg = "HOST", .fallback = "127.0.0.1", .help = "address to listen on"},
    OPT_INT("port", 'p', "N", "8000", 0, 65535, "port; 0: any that is free, which is then said"),
    OPT_STRING(
        "api-key", 0, "KEY",
        "clients must send `Authorization: Bearer KEY`, but for /health and the page; better given as GLOWQ_API_KEY, "
        "which isn't seen in the list of processes"),
    OPT_FLAG("insecure", 0, "listen on other addresses than the loopback without a key"),
    OPT_STRING("access-log", 0, "FILE", "append a line of JSON for each request; - for standard output"),
    OPT_HEADING("How much:"),
    OPTIONS_CAPACITY,
    OPT_INT("max-queue", 0, "N", "256", 0, 1 << 20, "requests that wait; more are answered 429; 0: no limit"),
    OPT_FLAG("no-prefix-cache", 0, "compute every prompt anew"),
    OPT_HEADING("How long:"),
    OPT_REAL("request-timeout", 0, "600", 0, 86400,
             "seconds for a request, its time in the queue included; 0: no limit"),
    OPT_REAL("drain-timeout", 0, "60", 0, 86400, "seconds that TERM leaves to the requests in flight"),
    OPT_REAL("stall-timeout", 0, "120", 1, 86400, "seconds after which a step that doesn't end counts as a lost rank"),
    OPT_REAL("linger", 0, "30", 0, 86400, "seconds for which a server that lost a rank goes on to answer 503"),
    OPT_STRING("exit-file", 0, "FILE",
               "write the exit code here at the end: what launch/serve.sh reads, as mpirun --enable-recovery hides it"),
    OPTIONS_COMPUTE,
    OPT_END,
};

static int is_loopback(const char *host)
{
    struct in_addr address; /* a name may begin with "127." too, and be anybody's */
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 ||
           (strncmp(host, "127.", 4) == 0 && inet_pton(AF_INET, host, &address) == 1);
}

static int check(struct options *o)
{
    const char *host = options_string(o, "host"), *key = options_string(o, "api-key");
    if (key && !*key)
        return options_refuse(o, "--api-key: an empty key is none");
    if (!is_loopback(host) && !key && !options_flag(o, "insecure"))
        return options_refuse(
            o, "--host %s is reachable from outside: give --api-key, or --insecure to serve everybody", host);
    return OK;
}

/* ---- rank 0's supervisor ---------------------------------------------------------------------------------------- */

struct server {
    const struct options *options;
    struct comm *comm;
    struct api *api;
    struct http_server *http;
    struct heartbeat *heart;
    struct engine *engine;
    FILE *access_log;
    pthread_t supervisor;
    int has_supervisor;
    atomic_int has_engine, lost, finished; /* finished: the thread of MPI is through and ends the process itself */
    char lost_why[160];                    /* set before lost */
};

static atomic_int n_signals; /* any thread may be the one that a signal interrupts */

static void on_signal(int number)
{
    (void)number;
    n_signals++;
}

/* TERM and INT, and USR1, which mpirun hands on where it answers TERM by killing its ranks. An end is rank 0's business: it stops
 * the others when nothing is left, or by the heartbeat while they load. */
static void catch_signals(int rank)
{
    struct sigaction action = {.sa_handler = rank == 0 ? on_signal : SIG_IGN};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

static void on_lost(void *ctx, int rank, const char *why)
{
    struct server *s = ctx;
    (void)rank;
    snprintf(s->lost_why, sizeof s->lost_why, "%s", why);
    atomic_store(&s->lost, 1);
}

static void write_exit_file(const struct options *o, int code)
{
    const char *path = options_string(o, "exit-file");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (f) {
        fprintf(f, "%d\n", code);
        fclose(f);
    } else if (path)
        log_warn("%s: %s", path, strerror(errno));
}

static void pause_s(double s)
{
    const struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)(1e9 * (s - (double)(time_t)s))};
    nanosleep(&t, NULL);
}

/* Clients hear of it, those who come later too, until a signal or --linger ends it. */
static void be_dead(struct server *s, const char *why)
{
    const double linger = options_real(s->options, "linger"), start = now_s();
    const int before = n_signals;
    log_warn("%s: requests are answered 503 for %.0f s, then this server ends with exit code 6", why, linger);
    api_set_state(s->api, API_DEAD, why);
    api_fail_all(s->api, why);
    while (now_s() - start < linger && n_signals == before)
        pause_s(0.05);
    if (n_signals != before)
        pause_s(0.3); /* what was just written is on its way */
}

static void end_now(struct server *s, int err)
{
    write_exit_file(s->options, err_exit_code(err));
    _exit(err_exit_code(err));
}

/* Nobody waits for an answer yet: all ranks leave the loading where it stands. A second signal, or a disk that doesn't answer, ends
 * this one at once. */
static void leave_loading(struct server *s, double *since)
{
    const double patience_s = 10;
    if (*since == 0) {
        *since = now_s();
        log_info("stopping: the model isn't loaded yet");
        interrupt_abandon();
        heartbeat_abandon(s->heart);
    }
    if (n_signals > 1 || now_s() - *since > patience_s)
        end_now(s, OK);
}

static void *supervise(void *arg)
{
    struct server *s = arg;
    const double drain_s = options_real(s->options, "drain-timeout");
    double leaving_since = 0, draining_since = 0;
    int stopped = 0;
    for (;;) {
        pause_s(0.05);
        if (atomic_load(&s->finished))
            return NULL;
        const int stalled = api_state(s->api) == API_DEAD;
        if (atomic_load(&s->lost) || stalled) {
            be_dead(s, atomic_load(&s->lost) ? s->lost_why : "the ranks make no step any more");
            if (atomic_load(&s->finished))
                return NULL;
            end_now(s, ERR_COMM);
        }
        if (n_signals == 0)
            continue;
        if (!atomic_load(&s->has_engine)) {
            leave_loading(s, &leaving_since);
            continue;
        }
        if (draining_since == 0) {
            draining_since = now_s();
            log_info("draining: no new requests; those in flight have %.0f s", drain_s);
            api_set_state(s->api, API_DRAINING, "the server is draining");
            engine_drain(s->engine);
        }
        if (!stopped && (n_signals > 1 || now_s() - draining_since > drain_s)) {
            stopped = 1;
            engine_stop(s->engine);
        }
    }
}

/* ---- start ------------------------------------------------------------------------------------------------------ */

static const char *last_part(const char *path)
{
    static char name[128];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    snprintf(name, sizeof name, "%.*s", (int)(n - begin), path + begin);
    return name;
}

/* Connections need descriptors. */
static int raise_descriptors(int wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return wanted;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    const rlim_t spare = 256; /* files, ranks, libraries */
    return limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > (rlim_t)wanted + spare ? wanted
           : limit.rlim_cur > 2 * spare                                               ? (int)(limit.rlim_cur - spare)
                                                                                      : (int)spare;
}

/* Listens before the model is loaded: a port that is taken is told at once, and probes get a true 503. Rank 0. */
static int open_http(struct server *s)
{
    int err = OK;
    const struct options *o = s->options;
    const char *log = options_string(o, "access-log"), *name = options_string(o, "name");
    struct http_options http = {.host = options_string(o, "host"),
                                .port = (int)options_int(o, "port"),
                                .api_key = options_string(o, "api-key"),
                                .open_paths = api_open_paths,
                                .threads = 2,
                                .workers = 2,
                                .limits = http_limits_default(),
                                .handle = api_handle};
    const struct api_options api = {.model_name = name ? name : last_part(options_string(o, "model")),
                                    .model_path = options_string(o, "model"),
                                    .parse_special = options_flag(o, "parse-special"),
                                    .request_timeout_s = options_real(o, "request-timeout"),
                                    .stall_s = options_real(o, "stall-timeout")};
    http.limits.connections = raise_descriptors(http.limits.connections);
    if (log && strcmp(log, "-") != 0) {
        if (!(s->access_log = fopen(log, "ae")))
            FAIL(ERR_IO, "%s: %s", log, strerror(errno));
        http.access_log = s->access_log;
    } else if (log)
        http.access_log = stdout;
    TRY(api_create(&api, &s->api));
    http.ctx = s->api;
    TRY(http_start(&http, &s->http));
    api_set_server(s->api, s->http);
out:
    return err;
}

static void say_ready(const struct server *s, const struct model *model)
{
    struct engine_statistics e;
    engine_statistics(s->engine, &e);
    const long long tokens = (long long)e.kv_blocks * KV_BLOCK;
    log_info("KV cache: %lld tokens; %.1f requests of the full %lld tokens at a time, at most %lld of any length",
             tokens, (double)tokens / (double)e.max_length, (long long)e.max_length, (long long)e.max_sequences);
    log_info("ready: http://%s:%d/v1, %d rank%s%s", options_string(s->options, "host"), http_port(s->http),
             model->dec.tp->size, model->dec.tp->size == 1 ? "" : "s",
             options_string(s->options, "api-key") ? ", with a key" : "");
}

/* Rank 0, once there are clients, a heartbeat and signals to look after. */
static int start_supervisor(struct server *s)
{
    int err = OK;
    if (pthread_create(&s->supervisor, NULL, supervise, s) != 0)
        FAIL(ERR_NOMEM, "no thread for the supervisor");
    s->has_supervisor = 1;
out:
    return err;
}

/* Model and engine: with a KV pool as given, or as large as the memory allows. Collective. */
static int load(struct comm *comm, const struct options *o, struct model *model, struct engine **engine)
{
    int err = OK;
    const int64_t sequences = options_int(o, "max-sequences"), given = options_int(o, "kv-tokens");
    const int64_t longest = options_int(o, "max-length");
    struct model_options load = {.no_correction = options_flag(o, "no-correction"),
                                 .max_batch_tokens = options_int(o, "max-batch-tokens"),
                                 .kv_tokens = given > 0 ? given : sequences * longest,
                                 .kv_sequences = given > 0 || longest > 0 ? 0 : sequences,
                                 .kv_fraction = given > 0 ? 0 : options_real(o, "memory-fraction")};
    TRY(model_open(comm, options_string(o, "model"), &load, model));
    const struct engine_options how = {.max_sequences = sequences,
                                       .max_batch_tokens = options_int(o, "max-batch-tokens"),
                                       .kv_tokens = model->kv_tokens,
                                       .max_length = longest,
                                       .max_queue = options_int(o, "max-queue"),
                                       .no_prefix_cache = options_flag(o, "no-prefix-cache")};
    TRY(engine_create(model, &how, engine));
out:
    return err;
}

/* Rank 0. */
static int go_live(struct server *s, struct model *model)
{
    int err = OK;
    TRY(api_open(s->api, model, s->engine, options_int(s->options, "max-queue")));
    say_ready(s, model);
    atomic_store(&s->has_engine, 1);
out:
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct backend be = {0};
    struct model model = {0};
    struct server s = {.options = o, .comm = comm};
    const struct heartbeat_options beats = {.on_lost = on_lost, .on_abandoned = interrupt_abandon, .ctx = &s};
    catch_signals(comm->rank);
    TRY(source_find(comm, o, 0));
    TRY(comm_agree(comm, comm->rank == 0 ? open_http(&s) : OK));
    TRY(heartbeat_start(comm, &beats, &s.heart));
    TRY(comm_agree(comm, comm->rank == 0 ? start_supervisor(&s) : OK));
    TRY(open_backend(comm, o, &be));
    TRY(load(comm, o, &model, &s.engine));
    TRY(comm_agree(comm, comm->rank == 0 ? go_live(&s, &model) : OK));
    err = engine_run(s.engine);
    if (comm->rank == 0 && err != OK && !atomic_load(&s.lost)) {
        atomic_store(&s.finished, 1);
        be_dead(&s, "the engine failed");
    }
    while (comm->rank == 0 && atomic_load(&s.lost))
        pause(); /* the supervisor tells the clients, and ends the process */
out:
    err = err == ERR_STOPPED ? OK : err; /* while it loaded: nothing is lost */
    atomic_store(&s.finished, 1);
    if (s.has_supervisor)
        pthread_join(s.supervisor, NULL);
    http_stop(s.http);
    heartbeat_stop(s.heart);
    engine_free(s.engine);
    api_free(s.api);
    model_close(&model);
    backend_close(&be);
    comm->be = NULL;
    if (s.access_log)
        fclose(s.access_log);
    if (comm->rank == 0)
        write_exit_file(o, err_exit_code(err));
    return err;
}

const struct command command_serve = {
    .name = "serve",
    .summary = "answer OpenAI-compatible HTTP requests",
    .about =
        "Serves a model at /v1/completions and /v1/chat/completions, with a page to try it at /. Requests share one "
        "batch, their keys and values one paged cache, and prompts that begin alike are computed once. TERM drains: no "
        "new requests, those in flight are finished. A lost rank is told by 503 within two seconds.",
    .examples = "Examples:\n"
                "  glowq serve --model llama.glowq\n"
                "  GLOWQ_API_KEY=secret launch/serve.sh 4 --model llama.glowq --host 0.0.0.0\n"
                "  curl http://127.0.0.1:8000/v1/completions \\\n"
                "    -H 'Content-Type: application/json' \\\n"
                "    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'\n",
    .options = table,
    .check = check,
    .own_watch = 1,
    .run = run,
};
