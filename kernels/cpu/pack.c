/* SPDX-License-Identifier: Apache-2.0
 * Weights in tiles of 16 rows: see cpu.h for the layout. Done once, while loading, panel by panel. */
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <string.h>

static int64_t n_tiles(const struct packed *w)
{
    return (w->d_out + TILE - 1) / TILE;
}

int64_t packed_group_begin(const struct packed *w, int64_t g)
{
    int64_t k = g * w->group_size - w->group_offset;
    return k > 0 ? k : 0;
}

int64_t packed_group_end(const struct packed *w, int64_t g)
{
    return min_i64(w->d_in, (g + 1) * w->group_size - w->group_offset);
}

size_t packed_code_bytes(const struct packed *w)
{
    int64_t columns = min_i64(w->group_size, w->d_in); /* most columns of a group that w can have */
    return TILE * (size_t)(w->bits == 8 ? columns : (columns + 1) / 2);
}

size_t packed_group_bytes(const struct packed *w)
{
    return packed_code_bytes(w) + TILE * (sizeof(uint16_t) + sizeof(uint8_t));
}

size_t packed_tile_bytes(const struct packed *w)
{
    if (w->bits == 0)
        return (size_t)w->d_in * TILE * dtype_bytes(w->dtype);
    return (size_t)w->n_groups * packed_group_bytes(w);
}

int weight_alloc_cpu(struct backend *be, struct packed *w)
{
    int err = OK;
    assert(packed_is_valid(w));
    size_t bytes = (size_t)n_tiles(w) * packed_tile_bytes(w);
    TRY(buf_alloc(be, bytes, &w->data));
    if (bytes > 0)
        TRY(be->ops->zero(be, w->data.p, bytes));
out:
    return err;
}

/* panel[i][k] -> tile[k][i]: element size e, 16 rows or fewer (the rest stays zero). */
static void put_dense_tile(char *tile, const struct mat *panel, int64_t row0, int64_t rows)
{
    size_t e = dtype_bytes(panel->dtype);
    for (int64_t i = 0; i < rows; i++) {
        const char *from = (const char *)panel->data + (size_t)((row0 + i) * panel->ld) * e;
        if (e == 4) {
            for (int64_t k = 0; k < panel->cols; k++)
                ((uint32_t *)(void *)tile)[k * TILE + i] = ((const uint32_t *)(const void *)from)[k];
        } else {
            for (int64_t k = 0; k < panel->cols; k++)
                ((uint16_t *)(void *)tile)[k * TILE + i] = ((const uint16_t *)(const void *)from)[k];
        }
    }
}

int weight_put_dense_cpu(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel)
{
    assert(w->bits == 0 && panel->dtype == w->dtype && panel->cols == w->d_in);
    assert(row0 % TILE == 0 && row0 + panel->rows <= w->d_out);
    assert(panel->rows % TILE == 0 || row0 + panel->rows == w->d_out);
#pragma omp parallel for num_threads(be->n_threads)
    for (int64_t i = 0; i < panel->rows; i += TILE) {
        char *tile = (char *)w->data.p + (size_t)((row0 + i) / TILE) * packed_tile_bytes(w);
        put_dense_tile(tile, panel, i, min_i64(TILE, panel->rows - i));
    }
    return OK;
}

/* One group of one tile: codes [16 rows or fewer, columns], scales and zeros [rows, 1]. */
static void put_code_group(const struct packed *w, uint8_t *block, const struct mat *codes, const struct mat *scales,
                           const struct mat *zeros)
{
    uint16_t *block_scales = (uint16_t *)(void *)(block + packed_code_bytes(w));
    uint8_t *block_zeros = (uint8_t *)(block_scales + TILE);
    for (int64_t i = 0; i < codes->rows; i++) {
        const uint8_t *from = (const uint8_t *)codes->data + i * codes->ld;
        block_scales[i] = ((const uint16_t *)scales->data)[i * scales->ld];
        block_zeros[i] = ((const uint8_t *)zeros->data)[i * zeros->ld];
        if (w->bits == 8) {
            for (int64_t k = 0; k < codes->cols; k++)
                block[k * TILE + i] = from[k];
        } else {
            for (int64_t k = 0; k < codes->cols; k++)
                block[k / 2 * TILE + i] |= (uint8_t)(k % 2 ? from[k] << 4 : from[k]);
        }
    }
}

int weight_put_codes_cpu(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                         const struct mat *scales, const struct mat *zeros)
{
    const int64_t rows = codes->rows;
    assert(w->bits > 0 && row0 % TILE == 0 && row0 + rows <= w->d_out);
    assert(rows % TILE == 0 || row0 + rows == w->d_out);
    assert(codes->dtype == DT_U8 && codes->cols == w->d_in && scales->dtype == DT_F16 && zeros->dtype == DT_U8);
    assert(scales->rows == rows && zeros->rows == rows && scales->cols == w->n_groups && zeros->cols == w->n_groups);
    if (w->d_in == 0)
        return OK;
#pragma omp parallel for num_threads(be->n_threads)
    for (int64_t i = 0; i < rows; i += TILE) {
        uint8_t *tile = (uint8_t *)w->data.p + (size_t)((row0 + i) / TILE) * packed_tile_bytes(w);
        memset(tile, 0, packed_tile_bytes(w)); /* nibbles are or-ed in; a panel may be put again */
        for (int64_t g = 0; g < w->n_groups; g++) {
            const int64_t n = min_i64(TILE, rows - i), k = packed_group_begin(w, g), k_end = packed_group_end(w, g);
            struct mat c = mat_rows(codes, i, n), s = mat_rows(scales, i, n), z = mat_rows(zeros, i, n);
            c = mat_cols(&c, k, k_end - k);
            s = mat_cols(&s, g, 1);
            z = mat_cols(&z, g, 1);
            put_code_group(w, tile + (size_t)g * packed_group_bytes(w), &c, &s, &z);
        }
    }
    return OK;
}
