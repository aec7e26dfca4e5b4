/* SPDX-License-Identifier: Apache-2.0
 * What a layer's file says of itself in attributes, as model/store.h specifies them: written before the data, the measured part
 * again once it is known, and read by every reader first. */
#include "model/store_private.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

/* ---- of any file -------------------------------------------------------------------------------------------------- */

int header_write(hid_t file, const char *path, const char *format, const char *fingerprint)
{
    int err = OK;
    TRY(h5_put_string(file, path, "/", "format", format));
    TRY(h5_put_i64(file, path, "/", "version", STORE_VERSION));
    TRY(h5_put_string(file, path, "/", "fingerprint", fingerprint));
out:
    return err;
}

int header_read(hid_t file, const char *path, const char *format, int64_t *version, char fingerprint[65])
{
    int err = OK;
    char found[32];
    TRY(h5_get_string(file, path, "/", "format", found, sizeof found));
    if (strcmp(found, format) != 0)
        FAIL(ERR_FORMAT, "%s: format \"%s\", expected \"%s\"", path, found, format);
    TRY(h5_get_i64(file, path, "/", "version", version));
    if (*version > STORE_VERSION)
        FAIL(ERR_UNSUPPORTED, "%s: store version %lld, this program reads up to %d: a newer glowq wrote it", path,
             (long long)*version, STORE_VERSION);
    if (*version < 1)
        FAIL(ERR_FORMAT, "%s: store version %lld", path, (long long)*version);
    TRY(h5_get_string(file, path, "/", "fingerprint", fingerprint, 65));
out:
    return err;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

static void module_path(const char *place, enum module module, char *out, size_t size)
{
    snprintf(out, size, "/%s/%s", place, module_name(module));
}

static void group_path(enum group group, char *out, size_t size)
{
    snprintf(out, size, "/groups/%s", group_name(group));
}

int group_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts, enum group group)
{
    int err = OK, n_modules = 0;
    enum module first = MOD_Q;
    const struct store_group *f = &facts->group[group];
    char name[64];
    group_path(group, name, sizeof name);
    TRY(h5_put_i64(file, path, name, "steps", f->steps));
    TRY(h5_put_f64(file, path, name, "energy", f->energy));
    TRY(h5_put_f64(file, path, name, "energy_error", f->energy_error));
    TRY(h5_put_f64(file, path, name, "trace", f->trace));
    TRY(h5_put_f64(file, path, name, "captured", f->captured));
    TRY(h5_put_f64(file, path, name, "error_norm2", f->error_norm2));
    group_modules(group, &first, &n_modules);
    for (int m = (int)first; m < (int)first + n_modules; m++) {
        if (facts->module[m].d_out == 0)
            continue;
        module_path("modules", (enum module)m, name, sizeof name);
        TRY(h5_put_f64(file, path, name, "captured", facts->module[m].captured));
    }
out:
    return err;
}

static int module_facts_write(hid_t file, const char *path, const char *name, const struct store_module *f)
{
    int err = OK;
    TRY(h5_make_group(file, path, name));
    TRY(h5_put_string(file, path, name, "scheme", STORE_SCHEME));
    TRY(h5_put_i64(file, path, name, "bits", f->bits));
    TRY(h5_put_i64(file, path, name, "group_size", f->group_size));
    TRY(h5_put_i64(file, path, name, "d_out", f->d_out));
    TRY(h5_put_i64(file, path, name, "d_in", f->d_in));
    TRY(h5_put_i64(file, path, name, "rank", f->rank));
    TRY(h5_put_i64(file, path, name, "first", f->first));
out:
    return err;
}

static int experts_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    TRY(h5_make_group(file, path, "/experts"));
    TRY(h5_put_i64(file, path, "/experts", "n_experts", facts->n_experts));
    for (int m = MOD_GATE; m < N_MODULES; m++) {
        module_path("experts", (enum module)m, name, sizeof name);
        TRY(module_facts_write(file, path, name, &facts->expert[m]));
        TRY(h5_put_i64(file, path, name, "step", facts->expert[m].step));
        if (m == MOD_DOWN)
            TRY(h5_put_string(file, path, name, "factor_dtype", dtype_name(facts->expert_down.factor_dtype)));
    }
out:
    return err;
}

int layer_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    TRY(header_write(file, path, "glowq-layer", facts->fingerprint));
    TRY(h5_put_i64(file, path, "/", "layer", facts->layer));
    for (int m = 0; m < N_MODULES; m++) {
        module_path("modules", (enum module)m, name, sizeof name);
        if (facts->module[m].d_out > 0)
            TRY(module_facts_write(file, path, name, &facts->module[m]));
    }
    for (int g = 0; g < N_GROUPS; g++) {
        const struct store_group *f = &facts->group[g];
        if (f->d_in == 0)
            continue;
        group_path((enum group)g, name, sizeof name);
        TRY(h5_make_group(file, path, name));
        TRY(h5_put_i64(file, path, name, "rank", f->rank));
        TRY(h5_put_i64(file, path, name, "d_in", f->d_in));
        TRY(h5_put_string(file, path, name, "factor_dtype", dtype_name(f->factor_dtype)));
        TRY(group_facts_write(file, path, facts, (enum group)g));
    }
    if (facts->n_experts > 0)
        TRY(experts_facts_write(file, path, facts));
out:
    return err;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static int module_facts_read(hid_t file, const char *path, const char *name, int64_t version, struct store_module *f)
{
    int err = OK;
    char text[72];
    int64_t bits = 0;
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no %s", path, name);
    TRY(h5_get_string(file, path, name, "scheme", text, sizeof text));
    if (strcmp(text, STORE_SCHEME) != 0)
        FAIL(ERR_UNSUPPORTED, "%s: %s is quantized by \"%s\", this program knows \"%s\"", path, name, text,
             STORE_SCHEME);
    TRY(h5_get_i64(file, path, name, "bits", &bits));
    TRY(h5_get_i64(file, path, name, "group_size", &f->group_size));
    TRY(h5_get_i64(file, path, name, "d_out", &f->d_out));
    TRY(h5_get_i64(file, path, name, "d_in", &f->d_in));
    TRY(h5_get_i64(file, path, name, "rank", &f->rank));
    if (version > 1) /* before, every module read its group's R from the first column on */
        TRY(h5_get_i64(file, path, name, "first", &f->first));
    f->bits = bits >= 0 && bits <= 8 ? (int)bits : 0;
    snprintf(text, sizeof text, "%s/bias", name);
    if ((f->has_bias = h5_has(file, text)))
        TRY(h5_get_dtype(file, path, text, &f->bias_dtype));
out:
    return err;
}

static int factor_dtype_read(hid_t file, const char *path, const char *name, enum dtype *dtype)
{
    int err = OK;
    char text[16];
    TRY(h5_get_string(file, path, name, "factor_dtype", text, sizeof text));
    if (dtype_of_name(text, dtype) != OK)
        FAIL(ERR_FORMAT, "%s: %s has unknown factor_dtype \"%s\"", path, name, text);
out:
    return err;
}

static int group_facts_read(hid_t file, const char *path, enum group group, struct store_group *f)
{
    int err = OK;
    char name[64];
    group_path(group, name, sizeof name);
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no %s", path, name);
    TRY(h5_get_i64(file, path, name, "rank", &f->rank));
    TRY(h5_get_i64(file, path, name, "d_in", &f->d_in));
    TRY(factor_dtype_read(file, path, name, &f->factor_dtype));
    TRY(h5_get_i64(file, path, name, "steps", &f->steps));
    TRY(h5_get_f64(file, path, name, "energy", &f->energy));
    TRY(h5_get_f64(file, path, name, "energy_error", &f->energy_error));
    TRY(h5_get_f64(file, path, name, "trace", &f->trace));
    TRY(h5_get_f64(file, path, name, "captured", &f->captured));
    TRY(h5_get_f64(file, path, name, "error_norm2", &f->error_norm2));
out:
    return err;
}

static int experts_facts_read(hid_t file, const char *path, int64_t version, struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    struct store_group *down = &facts->expert_down;
    TRY(h5_get_i64(file, path, "/experts", "n_experts", &facts->n_experts));
    if (facts->n_experts < 1)
        FAIL(ERR_FORMAT, "%s: /experts has n_experts %lld", path, (long long)facts->n_experts);
    for (int m = MOD_GATE; m < N_MODULES; m++) {
        module_path("experts", (enum module)m, name, sizeof name);
        TRY(module_facts_read(file, path, name, version, &facts->expert[m]));
        TRY(h5_get_i64(file, path, name, "step", &facts->expert[m].step));
        if (facts->expert[m].has_bias)
            FAIL(ERR_UNSUPPORTED, "%s: %s has biases, experts have none", path, name);
    }
    TRY(factor_dtype_read(file, path, name, &down->factor_dtype)); /* name: of the last, down_proj */
    down->rank = facts->expert[MOD_DOWN].rank;
    down->d_in = facts->expert[MOD_DOWN].d_in;
    for (int r = 0; r < N_ROUTERS; r++) {
        struct store_router *f = &facts->router[r];
        snprintf(name, sizeof name, "/routers/%s", store_router_name((enum router)r));
        if (!h5_has(file, name))
            continue;
        TRY(h5_get_dtype(file, path, name, &f->dtype));
        TRY(h5_get_length(file, path, name, &f->rows, &f->cols));
    }
out:
    return err;
}

/* Only a layer with experts can do without these: it has no shared expert. */
static int may_lack(hid_t file, const struct store_layer_facts *facts, const char *name)
{
    return facts->n_experts > 0 && !h5_has(file, name);
}

int layer_facts_read(hid_t file, const char *path, struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    int64_t version = 0, cols;
    memset(facts, 0, sizeof *facts);
    TRY(header_read(file, path, "glowq-layer", &version, facts->fingerprint));
    TRY(h5_get_i64(file, path, "/", "layer", &facts->layer));
    if (h5_has(file, "/experts"))
        TRY(experts_facts_read(file, path, version, facts));
    for (int g = 0; g < N_GROUPS; g++) {
        group_path((enum group)g, name, sizeof name);
        if (g != GROUP_DOWN || !may_lack(file, facts, name))
            TRY(group_facts_read(file, path, (enum group)g, &facts->group[g]));
    }
    for (int m = 0; m < N_MODULES; m++) {
        module_path("modules", (enum module)m, name, sizeof name);
        if (m >= MOD_GATE && may_lack(file, facts, name))
            continue;
        TRY(module_facts_read(file, path, name, version, &facts->module[m]));
        TRY(h5_get_f64(file, path, name, "captured", &facts->module[m].captured));
    }
    for (int v = 0; v < N_VECTORS; v++) {
        snprintf(name, sizeof name, "/vectors/%s", store_vector_name((enum vector)v));
        if (!h5_has(file, name))
            continue;
        TRY(h5_get_dtype(file, path, name, &facts->vector[v].dtype));
        TRY(h5_get_length(file, path, name, &facts->vector[v].n, &cols));
    }
    TRY(layer_check(ERR_FORMAT, path, facts));
    layer_derive(facts);
out:
    return err;
}
