/* SPDX-License-Identifier: Apache-2.0
 * libnccl.so.2, found at run time: what comm_nccl.c calls of it. These declarations follow NCCL's binary interface as of 2.19,
 * which later versions keep (tests/test_nccl.c compares them with nccl.h where there is one), so that building needs neither
 * NCCL nor CUDA. Not collective.
 */
#ifndef GLOWQ_COMM_NCCL_LIBRARY_H
#define GLOWQ_COMM_NCCL_LIBRARY_H

#include <stddef.h>

enum { NCCL_LEAST = 21900 }; /* 2.19.0 as ncclGetVersion counts */

enum nccl_code {
    NCCL_SUCCESS = 0,
    NCCL_SYSTEM_ERROR = 2,
    NCCL_INVALID_USAGE = 5,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7
};
enum nccl_type { NCCL_UINT8 = 1, NCCL_INT64 = 4, NCCL_FLOAT32 = 7 };
enum { NCCL_SUM = 0 };

struct nccl_id {
    char bytes[128];
};

/* ncclConfig_t of 2.19; newer libraries see by size and version what it doesn't have. */
struct nccl_config {
    size_t size;
    unsigned int magic, version;
    int blocking;
    int cga_cluster_size, min_ctas, max_ctas; /* INT_MIN: NCCL's own choice */
    const char *net_name;
    int split_share;
};
enum { NCCL_CONFIG_MAGIC = (int)0xcafebeef };

/* Functions in the order and with the names of nccl.h; comm is an ncclComm_t, stream a cudaStream_t. */
struct nccl_library {
    char path[256];
    int version; /* 22809 */
    int (*get_version)(int *version);
    int (*get_unique_id)(struct nccl_id *id);
    int (*comm_init_rank_config)(void **comm, int n_ranks, struct nccl_id id, int rank, struct nccl_config *config);
    int (*comm_finalize)(void *comm);
    int (*comm_destroy)(void *comm);
    int (*comm_abort)(void *comm);
    const char *(*get_error_string)(int code);
    const char *(*get_last_error)(void *comm);
    int (*comm_get_async_error)(void *comm, int *code);
    int (*broadcast)(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream);
    int (*reduce)(const void *from, void *to, size_t count, int type, int op, int root, void *comm, void *stream);
    int (*all_gather)(const void *from, void *to, size_t count, int type, void *comm, void *stream);
    int (*send)(const void *from, size_t count, int type, int peer, void *comm, void *stream);
    int (*recv)(void *to, size_t count, int type, int peer, void *comm, void *stream);
    int (*group_start)(void);
    int (*group_end)(void);
};

/* The library, loaded at the first call and kept; NULL: why says what was tried. GLOWQ_NCCL names the one file to try, or says
 * "off". Else: where the loader looks (LD_LIBRARY_PATH, the system), the program's folder, ../lib/glowq from it, the CUDA
 * toolkit's, Python's site-packages/nvidia/nccl/lib. */
const struct nccl_library *nccl_library(char *why, size_t n_why);
/* 22809 -> "2.28.9" */
void nccl_version_text(int version, char *text, size_t n);

#endif
