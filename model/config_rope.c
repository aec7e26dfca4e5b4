/* SPDX-License-Identifier: Apache-2.0
 * The rotary embedding's parameters, which config.json writes in three places: rope_theta at the top, rope_scaling
 * (older files) and rope_parameters (newer ones). They are merged, and a contradiction is an error. See config.h.
 */
#include "model/config_private.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Types served, with the keys that each one reads beside the common ones. */
static const struct {
    const char *name;
    enum rope_type type;
    const char *keys[4];
} types[] = {
    {"default", ROPE_DEFAULT, {NULL}},
    {"linear", ROPE_LINEAR, {"factor", NULL}},
    {"llama3", ROPE_LLAMA3, {"factor", "low_freq_factor", "high_freq_factor", NULL}},
};
/* original_max_position_embeddings only matters to llama3; elsewhere it documents. */
static const char *const common_keys[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor",
                                          "original_max_position_embeddings"};

static int same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) /* 10000 and 10000.0 */
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static int merge_key(json_t *rope, const char *key, json_t *value, const char *where)
{
    int err = OK;
    const json_t *known = json_object_get(rope, key);
    if (!value || json_is_null(value))
        goto out;
    if (known && !same_value(known, value))
        FAIL(ERR_FORMAT,
             "%s: \"%.60s\" is given twice with different values (rope_scaling, rope_parameters, top level)", where,
             key);
    if (json_object_set(rope, key, value) != 0)
        FAIL(ERR_NOMEM, "rope parameters");
out:
    return err;
}

static int merge_section(json_t *rope, const json_t *root, const char *section, const char *where)
{
    int err = OK;
    const char *key;
    json_t *value, *from = json_object_get(root, section);
    if (!from || json_is_null(from))
        goto out;
    if (!json_is_object(from))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be an object or null", where, section);
    json_object_foreach(from, key, value) TRY(merge_key(rope, key, value, where));
out:
    return err;
}

static int merge(const json_t *root, const char *where, json_t **out)
{
    int err = OK;
    static const char *const top[] = {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"};
    json_t *rope = json_object();
    if (!rope)
        FAIL(ERR_NOMEM, "rope parameters");
    TRY(merge_section(rope, root, "rope_scaling", where));
    TRY(merge_section(rope, root, "rope_parameters", where));
    for (size_t i = 0; i < sizeof top / sizeof *top; i++)
        TRY(merge_key(rope, top[i], json_object_get(root, top[i]), where));
    *out = rope;
    rope = NULL;
out:
    json_decref(rope);
    return err;
}

/* Index into types; the older name of the key is "type". */
static int find_type(const json_t *rope, const char *where, size_t *index)
{
    int err = OK;
    const char *name, *older;
    TRY(json_opt_string(rope, "type", "default", where, &older));
    TRY(json_opt_string(rope, "rope_type", older, where, &name));
    if (json_object_get(rope, "type") && strcmp(name, older) != 0)
        FAIL(ERR_UNSUPPORTED, "%s: rope_type \"%.40s\" contradicts type \"%.40s\"", where, name, older);
    for (*index = 0; *index < sizeof types / sizeof *types; ++*index)
        if (strcmp(name, types[*index].name) == 0)
            goto out;
    FAIL(ERR_UNSUPPORTED, "%s: rope_type \"%.40s\" is not supported (default, linear, llama3 are)", where, name);
out:
    return err;
}

static int is_read(const char *key, size_t type)
{
    for (size_t i = 0; i < sizeof common_keys / sizeof *common_keys; i++)
        if (strcmp(key, common_keys[i]) == 0)
            return 1;
    for (const char *const *k = types[type].keys; *k; k++)
        if (strcmp(key, *k) == 0)
            return 1;
    return 0;
}

/* Every key given is one that the type reads: attention_factor, mrope_section or per-layer sections would change
 * angles. */
static int check_keys(json_t *rope, size_t type, const char *where)
{
    int err = OK;
    const char *key;
    json_t *value;
    double part;
    json_object_foreach(rope, key, value) if (!is_read(key, type))
        FAIL(ERR_UNSUPPORTED, "%s: rope parameter \"%.60s\" of rope_type \"%s\" is not supported", where, key,
             types[type].name);
    TRY(json_opt_double(rope, "partial_rotary_factor", 1.0, where, &part));
    if (part != 1.0)
        FAIL(ERR_UNSUPPORTED, "%s: \"partial_rotary_factor\": %g is not supported (only 1)", where, part);
out:
    return err;
}

static int positive(const json_t *rope, const char *key, const char *where, double *out)
{
    int err = OK;
    TRY(json_get_double(rope, key, where, out));
    if (!isfinite(*out) || *out <= 0)
        FAIL(ERR_FORMAT, "%s: rope parameter \"%s\": %g must be positive", where, key, *out);
out:
    return err;
}

static int read_llama3(const json_t *rope, const char *where, int64_t max_position, struct rope_config *out)
{
    int err = OK;
    TRY(positive(rope, "low_freq_factor", where, &out->low_freq_factor));
    TRY(positive(rope, "high_freq_factor", where, &out->high_freq_factor));
    /* Their difference divides the interpolation between the bands. */
    if (out->high_freq_factor <= out->low_freq_factor)
        FAIL(ERR_FORMAT, "%s: rope parameter \"high_freq_factor\": %g must exceed low_freq_factor %g", where,
             out->high_freq_factor, out->low_freq_factor);
    TRY(json_opt_int(rope, "original_max_position_embeddings", max_position, where, &out->original_max_position));
    if (out->original_max_position <= 0 || out->original_max_position > INT64_C(1) << 31)
        FAIL(ERR_FORMAT, "%s: rope parameter \"original_max_position_embeddings\": %lld is out of range", where,
             (long long)out->original_max_position);
out:
    return err;
}

int config_rope(const json_t *root, const char *where, const struct family *family, int64_t max_position,
                struct rope_config *out)
{
    int err = OK;
    json_t *rope = NULL;
    size_t type = 0;
    *out = (struct rope_config){.theta = family->default_theta, .factor = 1.0};
    TRY(merge(root, where, &rope));
    TRY(find_type(rope, where, &type));
    TRY(check_keys(rope, type, where));
    out->type = types[type].type;
    if (json_object_get(rope, "rope_theta"))
        TRY(positive(rope, "rope_theta", where, &out->theta));
    if (out->type != ROPE_DEFAULT)
        TRY(positive(rope, "factor", where, &out->factor));
    if (out->type == ROPE_LLAMA3)
        TRY(read_llama3(rope, where, max_position, out));
out:
    json_decref(rope);
    return err;
}
