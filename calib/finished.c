/* SPDX-License-Identifier: Apache-2.0
 * Finished: see finished.h. */
#include "calib/finished.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "calib/facts.h"
#include "model/manifest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What differs, told one behind the other. */
struct list {
    char text[1024];
};

static void add(struct list *list, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct list *list, const char *fmt, ...)
{
    const size_t used = strlen(list->text);
    va_list args;
    va_start(args, fmt);
    const int comma = used > 0 ? snprintf(list->text + used, sizeof list->text - used, ", ") : 0;
    if (used + (size_t)comma < sizeof list->text)
        vsnprintf(list->text + used + comma, sizeof list->text - used - (size_t)comma, fmt, args);
    va_end(args);
}

/* A setting's value as an option would take it. */
static void value_text(const json_t *value, char *out, size_t size)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    snprintf(out, size, "%s", json_is_string(value) ? json_string_value(value) : text ? text : "?");
    free(text);
}

/* Settings are called like their options, with '_' for '-'. */
static void add_settings(struct list *list, const json_t *there, const json_t *asked)
{
    const char *key;
    json_t *value;
    char before[64], now[64], option[64];
    json_object_foreach((json_t *)asked, key, value)
    {
        const json_t *old = json_object_get(there, key);
        if (json_equal((json_t *)old, value))
            continue;
        value_text(old, before, sizeof before);
        value_text(value, now, sizeof now);
        snprintf(option, sizeof option, "%s", key);
        for (char *p = option; *p; p++)
            *p = *p == '_' ? '-' : *p;
        add(list, "--%s %s (asked for: %s)", option, before, now);
    }
}

static int same_string(const json_t *object, const char *key, const char *want)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && strcmp(text, want) == 0;
}

int finished_read(const struct calibrate_options *options, const struct model_config *config,
                  const struct corpus *corpus, const char *fingerprint, int *finished)
{
    int err = OK;
    const char *dir = options->out;
    struct list differs = {0};
    json_t *manifest = NULL, *model = NULL, *settings = NULL;
    *finished = 0;
    if (!file_is_in(dir, "manifest.json"))
        goto out;
    const int before = err_quiet(1);
    err = manifest_read(dir, &manifest);
    err_quiet(before);
    if (err == ERR_NOMEM)
        goto out;
    if (err)
        FAIL(ERR_ARG, "--out %s: not a result to go on with: %s: give another --out, or --overwrite", dir, err_last());
    *finished = 1;
    if (same_string(manifest, "fingerprint", fingerprint))
        goto out;
    model = facts_model(config);
    settings = facts_settings(options, config->n_experts > 0);
    if (!model || !settings)
        FAIL(ERR_NOMEM, "what %s was made of", dir);
    if (!json_equal(json_object_get(manifest, "model"), model))
        add(&differs, "another model");
    if (!same_string(json_object_get(manifest, "text"), "sha256", corpus->text_sha256))
        add(&differs, "another text");
    add_settings(&differs, json_object_get(manifest, "settings"), settings);
    if (!differs.text[0]) /* what the fingerprint is of beside these */
        add(&differs, "another checkpoint or tokenizer, or another kind of processor or device");
    FAIL(ERR_ARG, "%s is finished, of other settings: %s: give --overwrite to replace it, or another --out", dir,
         differs.text);
out:
    json_decref(settings);
    json_decref(model);
    json_decref(manifest);
    return err;
}

int finished_check(const char *dir, int *whole)
{
    int err = OK;
    json_t *manifest = NULL, *entry;
    const char *name;
    TRY(manifest_read(dir, &manifest));
    *whole = 1;
    json_object_foreach(json_object_get(manifest, "files"), name, entry)
    {
        if (strncmp(name, "layers/", 7) == 0 || strcmp(name, "head.h5") == 0)
            continue;
        const int before = err_quiet(1);
        const int bad = manifest_check(dir, manifest, name);
        err_quiet(before);
        if (bad)
            log_warn("%s", err_last());
        *whole = *whole && !bad;
    }
out:
    json_decref(manifest);
    return err;
}
