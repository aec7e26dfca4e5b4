/* SPDX-License-Identifier: Apache-2.0
 * Chat: messages become a prompt by the model's template; see api_private.h.
 *
 * The template writes special tokens into the text, which is therefore tokenized with them. What a user writes must not become
 * one: where a message's content spells a special token, a mark that nobody can guess is put inside it, and the rendered text is
 * tokenized in the pieces between the marks. Other texts are one piece, with exactly the ids that the reference has.
 */
#include "infer/api_private.h"

#include "base/err.h"
#include "base/log.h"
#include "model/chat_template.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- special tokens --------------------------------------------------------------------------------------------- */

/* Those whose text is left out of texts: what decoding without special tokens loses. */
static int find_specials(struct api *api)
{
    int err = OK;
    const struct tokenizer *t = api->model->tokenizer;
    const int64_t n = tokenizer_vocab_size(t);
    char *with = NULL, *without = NULL;
    size_t n_with = 0, n_without = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = (int32_t)i;
        TRY(tokenizer_decode(t, &id, 1, 0, &without, &n_without));
        if (n_without == 0) {
            TRY(tokenizer_decode(t, &id, 1, 1, &with, &n_with));
            if (n_with > 1)
                TRY(strings_add(&api->specials, with, n_with));
        }
        free(with);
        free(without);
        with = without = NULL;
    }
out:
    free(with);
    free(without);
    return err;
}

int api_open_chat(struct api *api)
{
    int err = OK;
    uint64_t number = 0;
    const int opened = chat_template_open(api->options.model_path, &api->chat);
    if (opened == ERR_UNSUPPORTED || opened == ERR_FORMAT) /* which was said */
        log_warn("%s: without its chat template, this model serves /v1/completions alone", api->options.model_path);
    else
        TRY(opened);
    if (!api->chat)
        goto out;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        FAIL(ERR_IO, "no random numbers");
    snprintf(api->mark, sizeof api->mark, "\xEF\xA3\xBF%016llx\xEF\xA3\xBF", (unsigned long long)number);
    TRY(find_specials(api));
out:
    return err;
}

void api_close_chat(struct api *api)
{
    chat_template_close(api->chat);
    strings_clear(&api->specials);
}

/* The longest special token that stands at p; 0: none. */
static size_t special_at(const struct api *api, const char *p, size_t n)
{
    size_t longest = 0, begin = 0;
    for (int64_t i = 0; i < api->specials.n; i++) {
        const size_t length = api->specials.ends[i] - begin;
        if (length > longest && length <= n && memcmp(p, api->specials.bytes.p + begin, length) == 0)
            longest = length;
        begin = api->specials.ends[i];
    }
    return longest;
}

static json_t *marked(const struct api *api, const char *p, size_t n)
{
    struct text out = {0};
    int err = OK;
    for (size_t i = 0; i < n && err == OK; i++) {
        err = text_add(&out, p + i, 1);
        if (err == OK && special_at(api, p + i, n - i) > 0)
            err = text_add(&out, api->mark, strlen(api->mark));
    }
    json_t *s = err == OK ? json_stringn(out.p ? out.p : "", out.n) : NULL;
    text_clear(&out);
    return s;
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

/* A content of parts becomes one string; NULL: there is a part that isn't text. */
static json_t *join_parts(const json_t *parts)
{
    struct text out = {0};
    size_t i;
    const json_t *part;
    json_t *joined = NULL;
    json_array_foreach(parts, i, part)
    {
        const json_t *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || strcmp(type, "text") != 0 || !json_is_string(text) ||
            text_add(&out, json_string_value(text), json_string_length(text)) != OK)
            goto out;
    }
    joined = json_stringn(out.p ? out.p : "", out.n);
out:
    text_clear(&out);
    return joined;
}

/* A copy of the messages with one string for each content, marks in it; NULL with a reason in *why. */
static json_t *prepare_messages(const struct completion *c, const json_t *messages, const char **why)
{
    json_t *copy = json_deep_copy(messages), *message;
    size_t i;
    *why = "messages must be a list of objects with a role and a content";
    if (!copy || !json_is_array(copy) || json_array_size(copy) == 0)
        goto bad;
    json_array_foreach(copy, i, message)
    {
        json_t *content = json_object_get(message, "content");
        if (!json_is_object(message) || !json_is_string(json_object_get(message, "role")))
            goto bad;
        if (content && !json_is_string(content) && !json_is_array(content) && !json_is_null(content))
            goto bad;
        json_t *text = json_is_array(content) ? join_parts(content) : json_incref(content);
        if (json_is_array(content) && !text) {
            *why = "of the parts of a content only text is supported";
            goto bad;
        }
        if (json_is_string(text) && !c->parse_special) {
            json_t *safe = marked(c->api, json_string_value(text), json_string_length(text));
            json_decref(text);
            text = safe;
        }
        if (text && json_object_set_new(message, "content", text) != 0)
            goto bad;
    }
    return copy;
bad:
    json_decref(copy);
    return NULL;
}

/* Between the marks, which are left out. */
static int encode_marked(const struct completion *c, const char *text, struct token_ids *ids)
{
    int err = OK;
    const size_t n_mark = strlen(c->api->mark);
    for (const char *p = text; p;) {
        const char *mark = strstr(p, c->api->mark);
        const size_t n = mark ? (size_t)(mark - p) : strlen(p);
        TRY(tokenizer_encode(c->api->model->tokenizer, p, n, TOKENIZE_PARSE_SPECIAL, ids));
        p = mark ? mark + n_mark : NULL;
    }
out:
    return err;
}

int completion_encode_chat(struct completion *c, const json_t *body)
{
    int err = ERR_ARG;
    const char *why = NULL;
    char *text = NULL, error[256] = "";
    const json_t *extra = json_object_get(body, "chat_template_kwargs");
    const json_t *add = json_object_get(body, "add_generation_prompt");
    json_t *messages = NULL;
    if (!c->api->chat) {
        http_error(c->http, 400, "invalid_request_error", NULL, "no_chat_template",
                   "this model has no chat template; use /v1/completions");
        return ERR_ARG;
    }
    if (!(messages = prepare_messages(c, json_object_get(body, "messages"), &why))) {
        http_error(c->http, 400, "invalid_request_error", "messages", NULL, "%s", why);
        goto out;
    }
    if (chat_template_render(c->api->chat, messages, NULL, json_is_object(extra) ? extra : NULL, !json_is_false(add),
                             &text, error, sizeof error) != OK) {
        http_error(c->http, 400, "invalid_request_error", "messages", NULL, "the chat template refuses this: %.200s",
                   error);
        goto out;
    }
    if (!(c->prompts = calloc(1, sizeof *c->prompts)) || encode_marked(c, text, &c->prompts[0].ids) != OK) {
        http_error(c->http, 503, "server_error", NULL, NULL, "the messages can't be encoded");
        goto out;
    }
    c->n_prompts = 1;
    err = completion_check_length(c, &c->prompts[0]);
out:
    json_decref(messages);
    free(text);
    return err;
}
