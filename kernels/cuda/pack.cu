/* SPDX-License-Identifier: Apache-2.0
 * Weights in the layout of pack.h, made on the device panel by panel while loading. */
#include "kernels/cuda/pack.h"

int weight_alloc_cuda(struct backend *be, struct packed *w)
{
    int err = OK;
    size_t bytes;
    assert(packed_is_valid(w));
    const struct weight_view v = weight_view_of(w);
    if (w->bits == 0)
        bytes = (size_t)(w->d_out * v.ld) * dtype_bytes(w->dtype);
    else
        bytes = (size_t)(pack_tiles(w) * (v.n_blocks * pack_block_bytes(w->bits) +
                                          w->n_groups * PACK_ROWS * (int64_t)sizeof(uint32_t)));
    TRY(buf_alloc(be, bytes, &w->data));
    if (bytes > 0)
        TRY(be->ops->zero(be, w->data.p, bytes));
out:
    return err;
}

int weight_put_dense_cuda(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel)
{
    assert(w->bits == 0 && panel->dtype == w->dtype && panel->cols == w->d_in);
    assert(row0 % PACK_ROWS == 0 && row0 + panel->rows <= w->d_out);
    assert(panel->rows % PACK_ROWS == 0 || row0 + panel->rows == w->d_out);
    const int64_t ld = weight_view_of(w).ld;
    struct mat to = *panel;
    if (panel->rows == 0 || panel->cols == 0)
        return OK;
    to.data = (char *)w->data.p + (size_t)(row0 * ld) * dtype_bytes(w->dtype);
    to.ld = ld;
    return be->ops->copy(be, panel, &to); /* columns past d_in keep the zeros of weight_alloc */
}

/* A thread makes one lane's word of one step: 8 codes. grid: blocks of a row tile / 2, row tiles of the panel. */
__global__ void __launch_bounds__(256)
    pack_codes(struct weight_view w, unsigned char *data, int64_t tile0, const uint8_t *codes, int64_t rows, int64_t ld)
{
    const int lane = (int)threadIdx.x % 32, step = (int)threadIdx.x / 32 % 4;
    const int64_t block = (int64_t)blockIdx.x * 2 + (int)threadIdx.x / 128, tile = blockIdx.y;
    uint64_t word = 0;
    if (block >= w.n_blocks)
        return;
    for (int i = 0; i < 8; i++) { /* 4 registers x 2 halves */
        const int64_t row = tile * PACK_ROWS + pack_row(lane, i / 2);
        const int64_t k = pack_column_at(&w, block * PACK_COLUMNS + pack_column(lane, step, i / 2, i % 2));
        const uint64_t code = row < rows && k >= 0 ? codes[row * ld + k] : 0;
        word |= code << (w.bits == 8 ? 8 * i : 4 * (i / 2 + 4 * (i % 2)));
    }
    unsigned char *to = data + ((tile0 + tile) * w.n_blocks + block) * pack_block_bytes(w.bits);
    if (w.bits == 8)
        *(uint64_t *)(void *)(to + step / 2 * 512 + lane * 16 + step % 2 * 8) = word;
    else
        ((uint32_t *)(void *)to)[lane * 4 + step] = (uint32_t)word;
}

/* A thread a record. */
__global__ void __launch_bounds__(256)
    pack_records(struct weight_view w, uint32_t *records, int64_t tile0, struct mat scales, struct mat zeros)
{
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    const int64_t group = i % w.n_groups, row = i / w.n_groups;
    if (row >= round_up(scales.rows, PACK_ROWS))
        return;
    uint32_t record = 0;
    if (row < scales.rows)
        record = ((const uint16_t *)scales.data)[row * scales.ld + group] |
                 (uint32_t)((const uint8_t *)zeros.data)[row * zeros.ld + group] << 16;
    records[((tile0 + row / PACK_ROWS) * w.n_groups + group) * PACK_ROWS + pack_record((int)(row % PACK_ROWS))] =
        record;
}

int weight_put_codes_cuda(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                          const struct mat *scales, const struct mat *zeros)
{
    int err = OK;
    const int64_t rows = codes->rows;
    assert(w->bits > 0 && row0 % PACK_ROWS == 0 && row0 + rows <= w->d_out);
    assert(rows % PACK_ROWS == 0 || row0 + rows == w->d_out);
    assert(codes->dtype == DT_U8 && codes->cols == w->d_in && scales->dtype == DT_F16 && zeros->dtype == DT_U8);
    assert(scales->rows == rows && zeros->rows == rows && scales->cols == w->n_groups && zeros->cols == w->n_groups);
    if (w->d_in == 0 || rows == 0)
        return OK;
    const struct weight_view v = weight_view_of(w);
    const int64_t tiles = (rows + PACK_ROWS - 1) / PACK_ROWS, tile0 = row0 / PACK_ROWS;
    enum { TILES_AT_ONCE = 32768 }; /* the grid's second dimension holds 65535 */
    for (int64_t t = 0; t < tiles; t += TILES_AT_ONCE) {
        const int64_t n = min_i64(TILES_AT_ONCE, tiles - t);
        const struct mat part = mat_rows(codes, t * PACK_ROWS, min_i64(n * PACK_ROWS, rows - t * PACK_ROWS));
        TRY(LAUNCH(be, dim3((unsigned)((v.n_blocks + 1) / 2), (unsigned)n), 256, 0, pack_codes, v,
                   (unsigned char *)w->data.p, tile0 + t, (const uint8_t *)part.data, part.rows, part.ld));
    }
    TRY(LAUNCH(be, dim3((unsigned)((tiles * PACK_ROWS * v.n_groups + 255) / 256)), 256, 0, pack_records, v,
               (uint32_t *)(void *)v.records, tile0, *scales, *zeros));
out:
    return err;
}
