/* SPDX-License-Identifier: Apache-2.0
 * What linear_wgmma rests on, on the host: codes read in the columns' order, the swizzle and its descriptor, the simulator's
 * instruction against plain loops; and that the simulator ends a kernel that breaks one of the instruction's rules. */
extern "C" {
#include "base/err.h"
}

#include "kernels/cuda/pack.h"
#include "kernels/cuda/wgmma.h"
#include "tests/child_help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct backend simulated()
{
    struct backend be = {};
    be.n_threads = 1;
    return be;
}

/* ---- codes in the columns' own order ------------------------------------------------------------------------------ */

/* A row tile's block as pack.h lays it out, with one code, its pieces at their slots. */
static void block_with(unsigned char *block, int bits, int row, int column, int code)
{
    unsigned char plain[1024] = {};
    const struct pack_place p = pack_place_of(row, column);
    if (bits == 8)
        plain[p.step / 2 * 512 + p.lane * 16 + p.step % 2 * 8 + p.reg * 2 + p.half] = (unsigned char)code;
    else
        plain[(p.lane * 4 + p.step) * 4 + (p.reg + 4 * p.half) / 2] =
            (unsigned char)(code << (p.reg + 4 * p.half) % 2 * 4);
    for (int i = 0; i < (int)pack_block_bytes(bits) / 16; i++)
        memcpy(block + pack_slot(i) * 16, plain + i * 16, 16);
}

static float value_of(uint32_t pair, int half)
{
    return bf16_value((uint16_t)(pair >> 16 * half));
}

/* Every element of a block is met by one lane, in one pair, where wgmma's A wants it: row g or g + 8, column 2 q or 2 q + 1 of
 * its 8. All others give -z, of their own row. */
static void test_pairs(void **)
{
    const int bits_of[] = {4, 8};
    for (int bits : bits_of)
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 64; column++) {
                alignas(16) unsigned char block[1024];
                int met = 0;
                block_with(block, bits, row, column, 11);
                for (int lane = 0; lane < 32; lane++)
                    for (int h = 0; h < 2; h++)
                        for (int e = 0; e < 4; e++) {
                            const int g = lane / 4, first = 32 * h + 8 * e + 2 * (lane % 4);
                            uint32_t word, pair[2];
                            memcpy(&word, block + pack_pair_at(bits, lane, h, e), 4);
                            if (bits == 8)
                                w8_pair(&pair[0], &pair[1], word, w8_zero(3u << 16), w8_zero(5u << 16));
                            else
                                w4_pair(&pair[0], &pair[1], word, lane, w4_zero(3u << 16), w4_zero(5u << 16));
                            for (int i = 0; i < 4; i++) {
                                const int is_it = g + i / 2 * 8 == row && first + i % 2 == column;
                                met += is_it;
                                assert_true(value_of(pair[i / 2], i % 2) == (float)(11 * is_it - (i / 2 ? 5 : 3)));
                            }
                        }
                assert_int_equal(met, 1);
            }
}

/* All codes and zeros at one place. */
static void test_codes(void **)
{
    const int bits_of[] = {4, 8};
    for (int bits : bits_of)
        for (uint32_t zero = 0; zero < 1u << bits; zero++)
            for (int code = 0; code < 1 << bits; code++) {
                alignas(16) unsigned char block[1024];
                uint32_t word, pair[2];
                block_with(block, bits, 9, 45, code); /* lane 4 + 2, half 1, eighth 1, second of its columns */
                memcpy(&word, block + pack_pair_at(bits, 6, 1, 1), 4);
                if (bits == 8)
                    w8_pair(&pair[0], &pair[1], word, w8_zero(0), w8_zero(zero << 16));
                else
                    w4_pair(&pair[0], &pair[1], word, 6, w4_zero(0), w4_zero(zero << 16));
                assert_true(value_of(pair[1], 1) == (float)code - (float)zero);
            }
}

/* Lanes of a warp read a bank's one word together, or different banks; pieces that are copied together (8 lanes of 16 bytes)
 * meet all 32 banks. */
static void test_banks(void **)
{
    const int bits_of[] = {4, 8};
    for (int bits : bits_of)
        for (int h = 0; h < 2; h++)
            for (int e = 0; e < 4; e++) {
                int word_of[32];
                memset(word_of, 0xff, sizeof word_of);
                for (int lane = 0; lane < 32; lane++) {
                    const int word = pack_pair_at(bits, lane, h, e) / 4;
                    assert_true(word_of[word % 32] == -1 || word_of[word % 32] == word);
                    word_of[word % 32] = word;
                }
            }
    for (int first = 0; first < 64; first += 8) {
        int seen = 0;
        for (int i = first; i < first + 8; i++) {
            assert_int_equal(pack_slot(i) / 8, first / 8);
            seen |= 1 << pack_slot(i) % 8;
        }
        assert_int_equal(seen, 0xff);
    }
}

/* ---- the right operand in shared memory --------------------------------------------------------------------------- */

/* PTX ISA, "Swizzling Modes": which 16-byte piece of a row of 128 bytes stands where under the 128-byte swizzle. */
static const int swizzle[8][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5},
                                  {3, 2, 1, 0, 7, 6, 5, 4}, {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2},
                                  {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};

static void test_swizzle(void **)
{
    for (int r = 0; r < 256; r++)
        for (int c = 0; c < 8; c++)
            assert_int_equal(wgmma_swizzled(r, swizzle[r % 8][c]), r * 128 + c * 16);
}

/* What the simulator reads through a descriptor, for every start that a kernel may take: tile, rows, step. */
__global__ void read_through(int *wrong)
{
    SHARED(unsigned char, shared);
    unsigned char *tile = shared + (-shared_address(shared) & (WGMMA_ATOM_BYTES - 1));
    *wrong = (int)(shared_address(tile) % WGMMA_ATOM_BYTES) + (tile == shared); /* the window begins off an atom */
    for (int first = 0; first < 256; first += 8)
        for (int step = 0; step < 4; step++) {
            const uint64_t b = wgmma_descriptor(shared_address(tile)) +
                               (uint64_t)(first * WGMMA_ROW_BYTES + step * WGMMA_STEP_BYTES) / 16;
            for (int n = 0; n < 64 && first + n < 256; n++)
                for (int k = 0; k < 16; k += 8) {
                    int c = 0;
                    while (swizzle[n % 8][c] != 2 * step + k / 8)
                        c++;
                    *wrong += sim_wgmma_b(b, k, n) != tile + (first + n) * 128 + c * 16;
                }
        }
}

static void test_descriptor(void **)
{
    int wrong = -1;
    const struct backend be = simulated();
    assert_int_equal(LAUNCH(&be, 1, 1, 256 * 128 + 1024, read_through, &wrong), OK);
    assert_int_equal(wrong, 0);
    /* "Matrix Descriptor Format": the fields, by hand */
    const uint64_t d = wgmma_descriptor(0x2a400);
    assert_int_equal(d & 0x3fff, 0x2a40);
    assert_int_equal(d >> 16 & 0x3fff, 1);
    assert_int_equal(d >> 32 & 0x3fff, 64);
    assert_int_equal(d >> 49 & 7, 0);
    assert_int_equal(d >> 62, 1);
}

/* ---- the instruction ---------------------------------------------------------------------------------------------- */

static float small(int i)
{
    return (float)(i * 37 % 23 - 11);
}

enum bug {
    NO_BUG,
    NO_FENCE,          /* wgmma_fence */
    NO_PROXY_FENCE,    /* after copies */
    EARLY_B,           /* a copy that hasn't landed */
    LATE_B,            /* written before the wait */
    LATE_A,            /* so are A's registers */
    LATE_D,            /* and D's */
    OTHER_DESCRIPTORS, /* in one warp */
    OTHER_SWIZZLE,
};

enum { B_BYTES = 128 * 128 };

/* D = A B over steps of 16 k for a warpgroup, B [128 k.., N rows of 64 k] of small integers copied from `b`; out [64, N] in
 * rows, early: what the registers hold before the wait. */
template <int N> __global__ void multiply(const uint16_t *b, int n_steps, enum bug bug, float *out, float *early)
{
    SHARED(unsigned char, shared);
    unsigned char *tile = shared + (-shared_address(shared) & (WGMMA_ATOM_BYTES - 1));
    const int thread = (int)threadIdx.x, lane = thread % 32, g = lane / 4, q = lane % 4, row = thread / 32 * 16 + g;
    float d[N / 2];
    uint32_t a[4][4];
    for (int i = thread; i < N * 8; i += 128)
        cp_async_16_if(tile + wgmma_swizzled(i / 8, i % 8), b + i * 8, 1);
    cp_async_commit();
    if (bug != EARLY_B)
        cp_async_wait<0>();
    if (bug != NO_PROXY_FENCE)
        fence_proxy_async();
    __syncthreads();
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 4; i++) {
            const int r = row + i % 2 * 8, k = 16 * s + i / 2 * 8 + 2 * q;
            a[s][i] = bf16_pair(small(r * 64 + k), small(r * 64 + k + 1));
        }
    for (int i = 0; i < N / 2; i++)
        d[i] = 1000;
    uint64_t at = wgmma_descriptor(shared_address(tile));
    if (bug == OTHER_DESCRIPTORS && lane == 7)
        at += 2;
    if (bug == OTHER_SWIZZLE)
        at += (uint64_t)1 << 62;
    if (bug != NO_FENCE)
        wgmma_fence();
    for (int s = 0; s < n_steps; s++)
        if (s == 0)
            wgmma_bf16<0>(d, a[s], at);
        else
            wgmma_bf16<1>(d, a[s], at + (uint64_t)(s * WGMMA_STEP_BYTES / 16));
    wgmma_commit();
    wgmma_commit(); /* a group without instructions */
    if (bug == EARLY_B)
        cp_async_wait<0>();
    if (bug == LATE_B && thread == 0)
        memset(tile, 0, 16);
    if (bug == LATE_B)
        __syncthreads();
    if (bug == LATE_A)
        a[0][2] ^= 1;
    if (bug == LATE_D)
        d[3] = 0;
    wgmma_wait<2>(); /* both groups may be under way: nothing is delivered */
    *early = d[0];
    wgmma_wait<1>();
    for (int i = 0; i < N / 2; i++)
        out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + 2 * q + i % 2] = d[i];
}

static uint16_t *right_operand(int n)
{
    uint16_t *b = (uint16_t *)aligned_alloc(16, (size_t)n * 128);
    for (int i = 0; b && i < n * 64; i++)
        b[i] = bf16_round(small(i + 5));
    return b;
}

template <int N> static void check_product(void)
{
    const struct backend be = simulated();
    uint16_t *b = right_operand(N);
    float *out = (float *)malloc(64 * N * sizeof *out), early;
    assert_non_null(b);
    assert_non_null(out);
    for (int n_steps = 1; n_steps <= 4; n_steps++) {
        assert_int_equal(LAUNCH(&be, 1, 128, B_BYTES + 1024, multiply<N>, b, n_steps, NO_BUG, out, &early), OK);
        assert_true(early != early); /* NaN */
        for (int i = 0; i < 64; i++)
            for (int n = 0; n < N; n++) {
                float sum = 0; /* of integers: exact in any order */
                for (int k = 0; k < 16 * n_steps; k++)
                    sum += small(i * 64 + k) * small(n * 64 + k + 5);
                assert_true(out[i * N + n] == sum);
            }
    }
    free(out);
    free(b);
}

static void test_product(void **)
{
    check_product<64>();
    check_product<128>();
}

/* The kernel has to end its process with these words. */
static void expect(enum bug bug, const char *words)
{
    char text[4096];
    struct child child;
    if (child_begins(&child)) {
        const struct backend be = simulated();
        float out[64 * 64], early;
        uint16_t *b = right_operand(64);
        if (b)
            LAUNCH(&be, 1, 128, B_BYTES + 1024, multiply<64>, b, 4, bug, out, &early);
        _exit(0);
    }
    const int status = child_ends(&child, text, sizeof text);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(text, words))
        fail_msg("bug %d: wanted an abort with \"%s\", got status %d and: %s", (int)bug, words, status, text);
}

static void test_rules(void **)
{
    expect(NO_FENCE, "without wgmma_fence");
    expect(NO_PROXY_FENCE, "no fence_proxy_async followed");
    expect(EARLY_B, "shared memory that wgmma reads was written");
    expect(LATE_B, "shared memory that wgmma reads was written");
    expect(LATE_A, "registers of wgmma's A were written");
    expect(LATE_D, "accumulators were written");
    expect(OTHER_DESCRIPTORS, "different descriptors");
    expect(OTHER_SWIZZLE, "a matrix descriptor that isn't one of 128-byte swizzle");
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs),   cmocka_unit_test(test_codes),      cmocka_unit_test(test_banks),
        cmocka_unit_test(test_swizzle), cmocka_unit_test(test_descriptor), cmocka_unit_test(test_product),
        cmocka_unit_test(test_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
