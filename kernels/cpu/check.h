/* SPDX-License-Identifier: Apache-2.0
 * Inside "cpu:check" (check.c): protected memory (check_memory.c) and lists of recorded calls (check_calls.c). */
#ifndef GLOWQ_KERNELS_CPU_CHECK_H
#define GLOWQ_KERNELS_CPU_CHECK_H

#include "kernels/kernels.h"

/* ---- check_calls.c: ops to be run later ---- */

struct call {
    struct call *next;
    const char *name;
    int (*run)(struct backend *be, const void *args);
    const void *args;
};

/* Owns its calls and everything that their arguments point to on the host. Zeroed when empty. */
struct calls {
    struct call *first, *last;
    struct chunk *chunks;
    size_t bytes; /* of what is kept */
    int err;      /* no memory to keep something: calls_add hands it out */
};
/* A copy of host memory that lives as long as the list; NULL of NULL. */
void *calls_keep(struct calls *calls, const void *from, size_t bytes);
/* *field, a pointer of an op's arguments, becomes one to a copy of what it points to, pointers in there included. */
void keep_mat(struct calls *calls, void *field);
void keep_packed(struct calls *calls, void *field);
void keep_linear_args(struct calls *calls, void *field);
void keep_attention_args(struct calls *calls, void *field);
void keep_grouped_args(struct calls *calls, void *field);
void keep_combine_args(struct calls *calls, void *field);
void keep_sample_args(struct calls *calls, void *field);
void keep_array(struct calls *calls, void *field, size_t bytes);
void keep_value(struct calls *calls, void *field); /* a number or a device pointer: itself */
/* args [bytes] are copied too, as they are. */
int calls_add(struct calls *calls, const char *name, int (*run)(struct backend *, const void *), const void *args,
              size_t bytes);
void calls_clear(struct calls *calls);

/* ---- check_memory.c: allocations, each on pages of its own ---- */

struct region {
    char *base;   /* first page */
    size_t bytes; /* whole pages, without the guard page */
    char *p;      /* what the caller holds */
    int n_hosts;  /* between host_begin and host_end */
    struct region *next;
};

/* spill: a folder for a file to map, whose zeros stay; NULL: memory. */
int region_create(struct region **regions, size_t bytes, const char *spill, void **p);
/* Its addresses stay closed for good: no later allocation gets them, so that a late use crashes, not reads another's data. */
void region_close(struct region **regions, void *p);
struct region *region_of(struct region *regions, const void *p); /* NULL: in none */
/* All regions: for an op; back to what the host may touch. */
void regions_open(struct region *regions);
void regions_close(struct region *regions);
/* One region, for the host. */
void region_open_host(struct region *region);
void region_close_host(struct region *region);

/* Content of all regions, one after another. Between regions_open and regions_close. */
size_t image_bytes(const struct region *regions);
void image_save(const struct region *regions, char *image);
void image_load(const struct region *regions, const char *image);
/* First difference of two images: its region and offset there (of what the caller holds); NULL: none. */
const struct region *image_compare(const struct region *regions, const char *a, const char *b, int64_t *offset);

#endif
