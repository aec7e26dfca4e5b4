/* SPDX-License-Identifier: Apache-2.0
 * Errors, working memory and switches, the same on the card and in the simulator. */
#include "kernels/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A process computes on one device: the one that was opened last. */
static struct {
    int index;
    int told; /* ERR_GPU */
} device;

void cuda_errors_begin(int index)
{
    device.index = index;
    device.told = 0;
}

int cuda_failed(int code, const char *file, int line, const char *what, const char *why)
{
    if (code == ERR_GPU && device.told++)
        return code;
    return err_set((enum err)code, file, line, "GPU %d: %s: %s", device.index, what, why);
}

cudaStream_t cuda_stream(const struct backend *be)
{
    return state_of(be)->stream;
}

int cuda_n_sm(const struct backend *be)
{
    return state_of(be)->n_sm;
}

int cuda_capability(const struct backend *be)
{
    return state_of(be)->capability;
}

static int is_left_out[CUDA_MAX_DEVICES][N_CUDA_TIERS];

void cuda_leave_out(const struct backend *be, enum cuda_tier tier)
{
    is_left_out[be->index % CUDA_MAX_DEVICES][tier] = 1;
}

int cuda_may_use(const struct backend *be, enum cuda_tier tier)
{
    return !is_left_out[be->index % CUDA_MAX_DEVICES][tier] && kernels_are_enabled("mma");
}

/* "21.30 GiB", "1.00 MiB", "300 bytes" */
static const char *size_text(size_t bytes, char *text, size_t n)
{
    const size_t mib = 1 << 20, gib = 1 << 30;
    if (bytes < mib)
        snprintf(text, n, "%zu bytes", bytes);
    else
        snprintf(text, n, "%.2f %s", (double)bytes / (double)(bytes < gib ? mib : gib), bytes < gib ? "MiB" : "GiB");
    return text;
}

int cuda_out_of_memory(struct backend *be, size_t bytes)
{
    int err = OK;
    size_t n_free = 0, total = 0;
    char texts[3][32];
    TRY(memory_cuda(be, &n_free, &total));
    FAIL(ERR_NOMEM,
         "needs %s, GPU %d has %s free of %s: try more GPUs, fewer tokens at a time, or to end what else runs on it",
         size_text(bytes, texts[0], sizeof texts[0]), be->index, size_text(n_free, texts[1], sizeof texts[1]),
         size_text(total, texts[2], sizeof texts[2]));
out:
    return err;
}

/* Growing frees the old block behind the kernels that use it, in the stream's order. Recorded steps hold its address: they are
 * recorded anew when scratch_moves has changed. */
int cuda_scratch(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    const int in_step = state->in_step;
    if (bytes > state->scratch_bytes) {
        const size_t unit = 1 << 20;
        if (state->recording)
            FAIL(ERR_GPU, "a recorded step wants %zu bytes of working memory, %zu more than when it ran before", bytes,
                 bytes - state->scratch_bytes);
        state->in_step = 0; /* alloc and free are forbidden to callers there, not to the run before the recording */
        if (state->scratch)
            be->ops->free(be, state->scratch, state->scratch_bytes);
        be->bytes_now -= state->scratch_bytes;
        state->scratch = NULL;
        state->scratch_bytes = 0;
        state->scratch_moves++;
        bytes = (bytes + unit - 1) / unit * unit;
        TRY(be->ops->alloc(be, bytes, &state->scratch));
        state->scratch_bytes = bytes;
        be->bytes_now += bytes;
        if (be->bytes_now > be->bytes_peak)
            be->bytes_peak = be->bytes_now;
    }
    *p = state->scratch;
out:
    state->in_step = in_step;
    return err;
}
