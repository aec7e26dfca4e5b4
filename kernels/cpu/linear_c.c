/* SPDX-License-Identifier: Apache-2.0
 * The inner loops in plain C: correct everywhere, and the text that the vector versions are compared with by bytes. */
#include "kernels/cpu/inner.h"
#include "kernels/cpu/rows.h"

#include <math.h>

static void tile_c(const struct tile_call *call)
{
    for (int i = 0; i < call->rows; i++) {
        const float *x = call->x + i * X_BLOCK;
        float *to = call->to + i * call->to_ld;
        for (int j = 0; j < PAIR_COLS; j++) {
            const float *w = call->w[j / TILE] + j % TILE;
            float acc = call->from ? call->from[i * call->from_ld + j] : 0;
            for (int64_t k = 0; k < call->n_k; k++)
                acc = fmaf(x[k], w[k * TILE], acc);
            to[j] = call->scale ? fmaf(call->scale[j], fmaf(-call->zero[j], call->x_sum[i], acc), to[j]) : acc;
        }
    }
}

static void unpack_c(const struct packed *w, int64_t tile, int64_t group, int64_t begin, int64_t end, float *out)
{
    const uint8_t *block = packed_block(w, tile, group);
    if (w->bits == 0) {
        convert(out, DT_F32, block + (size_t)(begin * TILE) * dtype_bytes(w->dtype), w->dtype, (end - begin) * TILE);
        return;
    }
    int64_t first = packed_group_begin(w, group);
    for (int64_t k = begin - first; k < end - first; k++)
        for (int64_t j = 0; j < TILE; j++)
            *out++ = w->bits == 8 ? block[k * TILE + j] : block[k / 2 * TILE + j] >> 4 * (k % 2) & 15;
}

static void scales_c(const struct packed *w, int64_t tile, int64_t group, float *scale, float *zero)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(packed_block(w, tile, group) + packed_code_bytes(w));
    const uint8_t *zeros = (const uint8_t *)(scales + TILE);
    for (int j = 0; j < TILE; j++) {
        scale[j] = f16_to_f32(scales[j]);
        zero[j] = zeros[j];
    }
}

/* The chain of a stream call is that of tile calls on unpacked columns. */
static void stream_c(const struct stream_call *call)
{
    const struct packed *w = call->w;
    for (int n = 0; n < call->n_tiles; n++) {
        float scale[TILE], zero[TILE], column[TILE], sum[STREAM_ROWS][TILE] = {{0}};
        for (int64_t k = call->of.begin; k < call->of.end; k++) {
            unpack_c(w, call->tile + n, call->of.group, k, k + 1, column);
            for (int i = 0; i < call->rows; i++) {
                float *acc = w->bits ? sum[i] : call->acc + i * STREAM_COLS + n * TILE;
                for (int j = 0; j < TILE; j++)
                    acc[j] = fmaf(call->x[i * call->x_ld + k], column[j], acc[j]);
            }
        }
        if (w->bits == 0)
            continue;
        scales_c(w, call->tile + n, call->of.group, scale, zero);
        for (int i = 0; i < call->rows; i++) {
            float *acc = call->acc + i * STREAM_COLS + n * TILE;
            for (int j = 0; j < TILE; j++)
                acc[j] = fmaf(scale[j], fmaf(-zero[j], call->x_sum[i], sum[i][j]), acc[j]);
        }
    }
}

static void columns_c(const float *const rows[TILE], int64_t n_k, float *out)
{
    for (int64_t k = 0; k < n_k; k++)
        for (int j = 0; j < TILE; j++)
            out[k * TILE + j] = rows[j][k];
}

const struct inner inner_c = {.name = "plain",
                              .row = &row_loops,
                              .rows = 8,
                              .tile = tile_c,
                              .stream = stream_c,
                              .unpack = unpack_c,
                              .scales = scales_c,
                              .columns = columns_c};
