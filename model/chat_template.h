/* SPDX-License-Identifier: Apache-2.0
 * Chat templates: messages -> the prompt's text, byte for byte as transformers' apply_chat_template(tokenize=False) writes
 * it. The template language is the bounded subset of Jinja in model/jinja.h.
 *
 * The text has its special tokens in it, BOS included where the template writes one: tokenize it with
 * TOKENIZE_PARSE_SPECIAL and without TOKENIZE_ADD_BOS. Not collective; after open all calls are const and thread safe. */
#ifndef GLOWQ_MODEL_CHAT_TEMPLATE_H
#define GLOWQ_MODEL_CHAT_TEMPLATE_H

#include "model/jinja.h"

#include <jansson.h>
#include <stddef.h>

struct chat_template;

/* Reads chat_template.jinja, else "chat_template" of tokenizer_config.json: a string, or a list of {name, template} of which
 * "default" is used, and "tool_use" for requests with tools. bos_token, eos_token and the like become variables: from
 * tokenizer_config.json, else special_tokens_map.json, else what the tokenizer's class has by default.
 * *out is NULL, and the result OK, where the model has no template. ERR_UNSUPPORTED (outside the subset) and ERR_FORMAT
 * (not a template) name the file, the line and the construct. */
int chat_template_open(const char *model_dir, struct chat_template **out);
void chat_template_close(struct chat_template *t);

/* The time that templates ask for by strftime_now; the system's if never set. Before other threads use t. */
void chat_template_set_clock(struct chat_template *t, struct jinja_clock clock);

/* messages: a non-empty list of objects; tools: a list of objects, or NULL; extra: an object whose members become
 * variables (chat_template_kwargs, "documents" among them), or NULL. None is modified. As transformers does, members of a
 * message that are null count as missing, and reasoning is found under each of its names.
 * OK: *text is 0-terminated UTF-8, free() it. ERR_ARG: these messages don't suit the template, or a bound was reached;
 * `error` then has one line for the client, "line N: ..." or what the template itself raised, cut to n_error; nothing is
 * printed. ERR_NOMEM likewise. */
int chat_template_render(const struct chat_template *t, const json_t *messages, const json_t *tools,
                         const json_t *extra, int add_generation_prompt, char **text, char *error, size_t n_error);

#endif
