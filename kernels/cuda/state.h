/* SPDX-License-Identifier: Apache-2.0
 * What state.cu (the card) and sim/state_sim.cpp (the simulator) both provide, and scratch.cu adds to either. */
#ifndef GLOWQ_KERNELS_CUDA_STATE_H
#define GLOWQ_KERNELS_CUDA_STATE_H

#include "kernels/cuda/cuda.h"

struct blas;        /* blas.cu's and blas_sim.cpp's own; NULL until the first use */
struct cuda_device; /* state.cu's and state_sim.cpp's own */

struct cuda_state {
    cudaStream_t stream;
    int n_sm;
    int capability; /* 90: 9.0 */
    void *scratch;
    size_t scratch_bytes;
    int64_t scratch_moves; /* how often it moved: recorded steps hold its address */
    int in_step, recording;
    struct blas *blas;
    struct cuda_device *device;
};

static inline struct cuda_state *state_of(const struct backend *be)
{
    return (struct cuda_state *)be->state;
}

/* The memory entries of the table. */
int open_cuda(struct backend *be);
void close_cuda(struct backend *be);
int alloc_cuda(struct backend *be, size_t bytes, void **p);
void free_cuda(struct backend *be, void *p, size_t bytes);
int spill_cuda(struct backend *be, size_t bytes, void **p);
void unspill_cuda(struct backend *be, void *p, size_t bytes);
int page_out_cuda(struct backend *be, void *p, size_t bytes);
int put_cuda(struct backend *be, void *device, const void *host, size_t bytes);
int get_cuda(struct backend *be, void *host, const void *device, size_t bytes);
int zero_cuda(struct backend *be, void *device, size_t bytes);
int sync_cuda(struct backend *be);
void *stream_cuda(struct backend *be);
int memory_cuda(struct backend *be, size_t *host_free, size_t *host_total);
int host_begin_cuda(struct backend *be, void *p, size_t bytes, void **host);
int host_end_cuda(struct backend *be, void *p, size_t bytes, void *host);
int step_begin_cuda(struct backend *be, struct step *step, int *host_replayed);
int step_end_cuda(struct backend *be, struct step *step);
void step_free_cuda(struct backend *be, struct step *step);

/* code, after "GPU 0: <what>: <why>". Of the ERR_GPU of a device only the first is told: a kernel that faults loses the whole
 * context, and every call after it, those that clean up too, gives the same answer. */
int cuda_failed(int code, const char *file, int line, const char *what, const char *why);
/* A device was opened: its errors are told from here on, with its number. */
void cuda_errors_begin(int index);
/* ERR_NOMEM, with what was asked for and what there is. */
int cuda_out_of_memory(struct backend *be, size_t bytes);

/* The module's entries. */
int count_cuda(char *why, size_t n_why);
int identify_cuda(int index, char *name, size_t n_name, char *pci, size_t n_pci);
void version_cuda(char *text, size_t n);

#endif
