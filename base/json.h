/* SPDX-License-Identifier: Apache-2.0
 * JSON read strictly (jansson: duplicate keys, bad UTF-8, trailing bytes and deep nesting refused) with errors that name
 * file, key, expected and found type. `where` is what messages call the object: a path, or "path: key". Not collective. */
#ifndef GLOWQ_BASE_JSON_H
#define GLOWQ_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Memory. jansson passes over some failures: a string that is read then lacks a character, and an object that is built a member whose
 * adding nobody checked. So its allocations are ours, a failure is remembered by the thread it happened in, and what such a thread has read
 * since is ERR_NOMEM, and has built since NULL. */

/* The text of a value (json_dumps); caller frees. NULL: no memory, now or while it was built (value may be NULL then). The failure stays
 * remembered, as what was built before may yet be printed; a server, which lives on, forgets it when it has told of it. */
char *json_text(const json_t *value, size_t flags);
void json_forget_failure(void);

/* json_loadb, for callers with flags and words of their own: ERR_FORMAT isn't told, e says why; ERR_NOMEM is. */
int json_load(const char *text, size_t n, size_t flags, const char *where, json_t **out, json_error_t *e);
/* Parse n bytes; caller json_decref's *out. ERR_FORMAT with line and column. */
int json_parse(const char *text, size_t n, const char *where, json_t **out);
/* Read a whole file of at most max_bytes and parse it. ERR_IO if it can't be read. */
int json_read(const char *path, size_t max_bytes, json_t **out);
/* Write as text (indent 2, sorted keys, newline at the end) through file_publish (base/file.h). */
int json_write(const char *path, const json_t *value);

/* Required members of object o: ERR_FORMAT if missing or of another type. */
int json_get_int(const json_t *o, const char *key, const char *where, int64_t *out);
int json_get_double(const json_t *o, const char *key, const char *where, double *out);
/* Optional members: fallback when the key is missing or null; ERR_FORMAT when of another type. */
int json_opt_int(const json_t *o, const char *key, int64_t fallback, const char *where, int64_t *out);
int json_opt_double(const json_t *o, const char *key, double fallback, const char *where, double *out);
int json_opt_bool(const json_t *o, const char *key, int fallback, const char *where, int *out);
/* *out points into o, or is fallback. */
int json_opt_string(const json_t *o, const char *key, const char *fallback, const char *where, const char **out);

#endif
