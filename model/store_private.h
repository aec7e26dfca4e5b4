/* SPDX-License-Identifier: Apache-2.0
 * What the store's writer, reader and verifier share: which tables a file has, and a layer's attributes.
 * One description serves all three, so that they can't come to disagree. Private to model/store_*.c. */
#ifndef GLOWQ_MODEL_STORE_PRIVATE_H
#define GLOWQ_MODEL_STORE_PRIVATE_H

#include "model/store.h"
#include "model/store_h5.h"

/* Index of a layer's tables: TABLE_CODES + module, ... A head's are enum store_end. */
enum {
    TABLE_CODES = 0,
    TABLE_SCALES = TABLE_CODES + N_MODULES,
    TABLE_ZEROS = TABLE_SCALES + N_MODULES,
    TABLE_A = TABLE_ZEROS + N_MODULES,
    TABLE_BIAS = TABLE_A + N_MODULES,
    TABLE_B = TABLE_BIAS + N_MODULES,
    TABLE_VECTOR = TABLE_B + N_GROUPS,
    /* of routed experts; MOD_GATE .. MOD_DOWN only */
    TABLE_EXPERT_CODES = TABLE_VECTOR + N_VECTORS,
    TABLE_EXPERT_SCALES = TABLE_EXPERT_CODES + N_MODULES,
    TABLE_EXPERT_ZEROS = TABLE_EXPERT_SCALES + N_MODULES,
    TABLE_EXPERT_A = TABLE_EXPERT_ZEROS + N_MODULES,
    TABLE_EXPERT_B = TABLE_EXPERT_A + N_MODULES, /* of down */
    TABLE_TOKENS,
    TABLE_WEIGHT,
    TABLE_CAPTURED,
    TABLE_TRACE,
    TABLE_ROUTER,
    N_TABLES = TABLE_ROUTER + N_ROUTERS
};

/* MOD_GATE .. MOD_DOWN: columns of the experts' captured and trace. */
enum { N_EXPERT_MODULES = N_MODULES - MOD_GATE };

/* Where a matrix stands: its tables and the slab of them. */
struct matrix_place {
    const struct store_module *facts;
    int codes, scales, zeros, a;
    int64_t slab;
};
/* Where B of a group stands. */
struct group_place {
    const struct store_group *facts;
    int b;
    int64_t slab;
};

/* ---- store_plan.c ---- */

/* What follows from the other members: n_groups, row_bytes. */
void layer_derive(struct store_layer_facts *facts);
/* ERR_ARG or ERR_FORMAT (code) naming path and what can't be. */
int layer_check(int code, const char *path, const struct store_layer_facts *facts);
/* The same of one expert's numbers: finite, and tokens not negative. */
int expert_check(int code, const char *path, int64_t e, const struct store_expert *expert);
/* ERR_FORMAT naming path and what differs. */
int layer_check_config(const char *path, const struct model_config *config, const struct store_layer_facts *facts);

/* ---- store_tree.c ---- */

/* "DIR/layers/0003.h5" */
int store_layer_path(const char *dir, int64_t l, char *out, size_t size);
int store_head_path(const char *dir, char *out, size_t size);
/* ERR_ARG naming path where the layer has no such matrix or group. */
int matrix_find(const char *path, const struct store_layer_facts *facts, struct matrix matrix,
                struct matrix_place *place);
int group_find(const char *path, const struct store_layer_facts *facts, struct group_id id, struct group_place *place);
void layer_specs(const struct store_layer_facts *facts, struct table_spec specs[N_TABLES]);
const char *store_vector_name(enum vector vector);
const char *store_router_name(enum router router);

void head_specs(const struct model_config *config, const enum dtype dtype[N_STORE_ENDS], int has_head,
                struct table_spec specs[N_TABLES]);
/* dtypes and presence as the file has them, shapes as the configuration wants them (or, config NULL, as the file has
 * them). */
int head_specs_read(hid_t file, const char *path, const struct model_config *config, struct table_spec specs[N_TABLES]);

/* disk: see table_create. */
int tables_create(hid_t file, const char *path, int disk, const struct table_spec specs[N_TABLES],
                  struct table tables[N_TABLES]);
int tables_open(hid_t file, const char *path, const struct table_spec specs[N_TABLES], struct table tables[N_TABLES]);
int tables_finish(struct table tables[N_TABLES]);
int tables_verify(struct table tables[N_TABLES], int64_t *n_bad);
void tables_close(struct table tables[N_TABLES]);

/* ---- store_facts.c ---- */

int layer_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts);
/* The measured part alone, once it is known. */
int group_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts, enum group group);
int layer_facts_read(hid_t file, const char *path, struct store_layer_facts *facts);

/* format, version and fingerprint of a file. */
int header_write(hid_t file, const char *path, const char *format, const char *fingerprint);
int header_read(hid_t file, const char *path, const char *format, int64_t *version, char fingerprint[65]);

/* ---- store_write.c ---- */

/* A file of any tables, published by store_publish: opened, given its attributes through writer_file, then its tables, which fix its
 * layout and take its room on disk, then their rows (table_put). */
int writer_open(const char *path, struct store_writer **out);
hid_t writer_file(const struct store_writer *w);
int writer_tables(struct store_writer *w, const struct table_spec specs[N_TABLES]);
int writer_put(struct store_writer *w, int table, int64_t slab, int64_t row0, int64_t rows, const void *data);

/* ---- store_read.c ---- */

/* Every table of an open file; those that it lacks have 0 rows. */
struct table *layer_tables(struct store_layer *layer);
struct table *head_tables(struct store_head *head);
/* Attributes of DIR/model.h5. */
int model_facts_read(const char *dir, struct store_facts *facts);
/* Opens a layer or head file and checks all its blocks; counts and names the bad. ERR_FORMAT if it can't be opened as
 * one. */
int layer_file_verify(const char *path, int64_t l, char fingerprint[65], int64_t *n_bad);
int head_file_verify(const char *path, char fingerprint[65], int64_t *n_bad);

#endif
