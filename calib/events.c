/* SPDX-License-Identifier: Apache-2.0
 * Events: see events.h. */
#include "calib/events.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "model/safetensors.h"
#include "model/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const size_t events_max_bytes = (size_t)64 << 20;

/* ---- writing ------------------------------------------------------------------------------------------------------- */

/* In one write, behind a newline if the run before was killed within a line. */
static int append_line(const char *path, const char *line)
{
    int err = OK, fd = -1;
    char last = '\n', *text = NULL;
    if ((fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0)
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    const off_t size = lseek(fd, 0, SEEK_END);
    if (size > 0 && pread(fd, &last, 1, size - 1) != 1)
        FAIL(ERR_IO, "cannot read %s: %s", path, strerror(errno));
    if (asprintf(&text, "%s%s\n", last == '\n' ? "" : "\n", line) < 0) {
        text = NULL;
        FAIL(ERR_NOMEM, "an event");
    }
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        FAIL(ERR_IO, "cannot append to %s: %s", path, strerror(errno));
out:
    free(text);
    if (fd >= 0)
        close(fd);
    return err;
}

void events_add(const char *dir, json_t *event)
{
    int err = OK;
    char path[PATH_MAX], now[32], *line = NULL;
    const time_t t = time(NULL);
    struct tm utc;
    const int before = err_quiet(1);
    gmtime_r(&t, &utc);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    if (!event || json_object_set_new(event, "time", json_string(now)) != 0 ||
        !(line = json_text(event, JSON_COMPACT | JSON_SORT_KEYS)))
        FAIL(ERR_NOMEM, "an event");
    TRY(file_join(path, sizeof path, dir, "events.jsonl"));
    TRY(append_line(path, line));
out:
    err_quiet(before);
    if (err)
        log_warn("progress isn't told: %s", err_last());
    free(line);
    json_decref(event);
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

const char *progress_state_name(enum progress_state state)
{
    static const char *const names[] = {"finished", "running", "stopped", "failed", "killed", "empty"};
    return names[state];
}

static void copy_text(const json_t *event, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(event, key));
    snprintf(out, size, "%s", text ? text : "");
}

static int64_t number(const json_t *event, const char *key, int64_t fallback)
{
    const json_t *value = json_object_get(event, key);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : fallback;
}

/* What is counted on the way through the events. */
struct tally {
    double seconds;
    int64_t solved;
};

static void take_start(const json_t *event, struct calibration_progress *p, struct tally *t)
{
    *t = (struct tally){0};
    p->runs++;
    p->state = STATE_KILLED; /* unless it says otherwise */
    p->layer = -1;
    p->n_layers = number(event, "layers", -1);
    p->ranks = number(event, "ranks", 0);
    p->stages = max_i64(1, number(event, "stages", 1));
    p->first = number(event, "first", 0);
    copy_text(event, "host", p->host, sizeof p->host);
    copy_text(event, "time", p->started, sizeof p->started);
    p->reason[0] = 0;
}

static void take(const json_t *event, struct calibration_progress *p, struct tally *t)
{
    char kind[16];
    copy_text(event, "event", kind, sizeof kind);
    copy_text(event, "time", p->last, sizeof p->last);
    if (strcmp(kind, "start") == 0)
        take_start(event, p, t);
    if (strcmp(kind, "hidden") == 0)
        p->hidden = number(event, "layer", -1);
    if (strcmp(kind, "layer") == 0) {
        p->layer = number(event, "layer", -1);
        if (json_is_true(json_object_get(event, "solved"))) {
            t->seconds += json_number_value(json_object_get(event, "seconds"));
            t->solved++;
        }
    }
    if (strcmp(kind, "signal") == 0) {
        p->state = STATE_STOPPED;
        copy_text(event, "signal", p->reason, sizeof p->reason);
    }
    if (strcmp(kind, "failed") == 0) {
        p->state = STATE_FAILED;
        snprintf(p->reason, sizeof p->reason, "exit code %lld", (long long)number(event, "code", 1));
    }
}

/* A line that isn't an event, the last one of a killed run perhaps, is passed over. */
static int read_events(const char *path, struct calibration_progress *p)
{
    int err = OK;
    char *text = NULL, *rest = NULL;
    size_t n = 0;
    struct tally tally = {0};
    if (!file_exists(path))
        goto out;
    TRY(file_read(path, events_max_bytes, &text, &n));
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *event = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        if (json_is_object(event))
            take(event, p, &tally);
        json_decref(event);
    }
    p->layer_s = tally.solved > 0 ? tally.seconds / (double)tally.solved : 0;
out:
    free(text);
    return err;
}

/* Files layers/NNNN.h5; a folder may hold few of very many, in any order. */
static int64_t count_published(const char *dir)
{
    char path[PATH_MAX];
    DIR *d = NULL;
    int64_t n = 0;
    if (file_join(path, sizeof path, dir, "layers") != OK || !(d = opendir(path)))
        return 0;
    for (struct dirent *e; (e = readdir(d));) {
        const size_t length = strlen(e->d_name);
        n += e->d_name[0] != '.' && length > 3 && strcmp(e->d_name + length - 3, ".h5") == 0;
    }
    closedir(d);
    return n;
}

int calibration_progress(const char *dir, struct calibration_progress *p)
{
    int err = OK;
    char path[PATH_MAX];
    *p = (struct calibration_progress){.state = STATE_EMPTY, .n_layers = -1, .stages = 1, .layer = -1, .hidden = -1};
    if (!file_is_dir(dir))
        FAIL(ERR_IO, "%s: no such folder", dir);
    if (checkpoint_is_in(dir))
        FAIL(ERR_FORMAT, "%s: a checkpoint's folder, not a .glowq folder", dir);
    TRY(file_join(path, sizeof path, dir, "events.jsonl"));
    TRY(read_events(path, p));
    p->n_published = count_published(dir);
    if (p->n_published > 0 && p->state == STATE_EMPTY)
        p->state = STATE_KILLED;
    TRY(file_join(path, sizeof path, dir, "hidden/cursor.json"));
    if (!file_exists(path))
        p->hidden = -1;
    TRY(file_join(path, sizeof path, dir, "manifest.json"));
    if (file_exists(path)) {
        p->state = STATE_FINISHED;
        p->n_layers = p->n_layers < 0 ? p->n_published : p->n_layers;
    } else if (store_locked(dir)) {
        p->state = STATE_RUNNING;
    }
out:
    return err;
}
