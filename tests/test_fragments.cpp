/* SPDX-License-Identifier: Apache-2.0
 * What the CUDA kernels' arithmetic rests on, on the host: where packed weights stand, codes and floats made into exact bf16,
 * small divisions, masks at the end of a row, and the simulator's matrix instructions and copies against plain loops. */
#include "kernels/cuda/linear.h"

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
}

static float value_of(uint32_t pair, int half)
{
    return bf16_value((uint16_t)(pair >> 16 * half));
}

/* Every element of a block of 16 x 64 has a place of its own, and pack_row and pack_column lead back. */
static void test_places(void **)
{
    unsigned char seen[32][4][4][2] = {};
    for (int i = 0; i < 16; i++)
        for (int c = 0; c < 64; c++) {
            const struct pack_place p = pack_place_of(i, c);
            assert_int_equal(seen[p.lane][p.step][p.reg][p.half]++, 0);
            assert_int_equal(pack_row(p.lane, p.reg), i);
            assert_int_equal(pack_column(p.lane, p.step, p.reg, p.half), c);
        }
    unsigned char records[16] = {};
    for (int i = 0; i < 16; i++)
        assert_int_equal(records[pack_record(i)]++, 0);
}

/* A lane's fragment of a step is what PTX wants it to be, if k of the instruction is renamed: registers 0 and 1 hold the same
 * columns of rows g and g + 8, 2 and 3 too, and the columns of all four lanes and registers are 16 different ones that lie in
 * the lane's own 8 of the step's half. */
static void test_fragment_columns(void **)
{
    for (int step = 0; step < 4; step++) {
        int seen[64] = {};
        for (int lane = 0; lane < 32; lane++)
            for (int reg = 0; reg < 4; reg++)
                for (int half = 0; half < 2; half++) {
                    const int c = pack_column(lane, step, reg, half);
                    assert_int_equal(c, pack_column(lane, step, reg ^ 1, half));
                    assert_int_equal(c, pack_column(lane % 4, step, reg, half));
                    assert_int_equal(pack_row(lane, reg), lane / 4 + reg % 2 * 8);
                    assert_int_equal(c / 8, step / 2 * 4 + lane % 4);
                    seen[c]++;
                }
        int n = 0;
        for (int c = 0; c < 64; c++) {
            assert_true(seen[c] == 0 || seen[c] == 16); /* 8 rows g, two registers */
            n += seen[c] == 16;
        }
        assert_int_equal(n, 16);
    }
}

/* Which eighth of x a column is: the right operand's lane takes x's 8 columns in order, four a step. */
static void test_operands_agree(void **)
{
    for (int lane = 0; lane < 32; lane++)
        for (int step = 0; step < 4; step++)
            for (int pair = 0; pair < 2; pair++)
                for (int half = 0; half < 2; half++)
                    assert_int_equal(pack_column(lane, step, 2 * pair, half) % 8, step % 2 * 4 + 2 * pair + half);
}

/* All codes, zeros and positions in a word. */
static void test_codes_of_4_bits(void **)
{
    for (uint32_t zero = 0; zero < 16; zero++)
        for (uint32_t code = 0; code < 16; code++)
            for (int i = 0; i < 8; i++) {
                uint32_t a[4];
                const uint32_t other = 15 - zero, rest = 0x7c1e35a9u & ~(15u << 4 * i);
                w4_fragment(a, rest | code << 4 * i, w4_zero(zero << 16 | 0x3c00), w4_zero(other << 16 | 0x1234));
                const float z = (float)(i % 2 ? other : zero);
                assert_true(value_of(a[i % 4], i / 4) == (float)code - z);
            }
}

static void test_codes_of_8_bits(void **)
{
    for (uint32_t zero = 0; zero < 256; zero++)
        for (uint32_t code = 0; code < 256; code++)
            for (int i = 0; i < 8; i++) {
                uint32_t a[4];
                const uint64_t word = (0x9f03a57c118e42d6ull & ~(0xffull << 8 * i)) | (uint64_t)code << 8 * i;
                const uint32_t other = 255 - zero;
                w8_fragment(a, make_uint2((uint32_t)word, (uint32_t)(word >> 32)), w8_zero(zero << 16 | 0x3c00),
                            w8_zero(other << 16));
                const float z = (float)(i / 2 % 2 ? other : zero);
                assert_true(value_of(a[i / 2], i % 2) == (float)code - z);
            }
}

/* Every finite f16, in both halves. */
static void test_split_of_f16(void **)
{
    for (uint32_t v = 0; v < 65536; v++) {
        uint32_t upper, lower;
        if ((v & 0x7c00) == 0x7c00)
            continue;
        f16_split(v | (v ^ 0x8000) << 16, &upper, &lower);
        assert_true(value_of(upper, 0) + value_of(lower, 0) == f16_value((uint16_t)v));
        assert_true(value_of(upper, 1) + value_of(lower, 1) == -f16_value((uint16_t)v));
    }
}

/* Significands of every kind at all exponents whose 24 bits bf16 can hold. */
static void test_split_of_f32(void **)
{
    uint32_t state = 1;
    for (uint32_t exponent = 127 - 100; exponent < 254; exponent++)
        for (int i = 0; i < 2000; i++) {
            uint32_t out[3];
            state = state * 1664525u + 1013904223u;
            const uint32_t significand = i == 0 ? 0 : i == 1 ? 0x7fffff : i == 2 ? 0x7f8000 : state >> 9;
            const float v = __uint_as_float(exponent << 23 | significand);
            if (bf16_value(bf16_round(v)) > 3.3e38f) /* rounds to infinity */
                continue;
            f32_split(v, -v, out);
            for (int half = 0; half < 2; half++)
                assert_true((double)value_of(out[0], half) + value_of(out[1], half) + value_of(out[2], half) ==
                            (half ? -(double)v : (double)v));
        }
}

/* i / n by multiplication, at every multiple of n, just before it and after it. */
static void test_groups_of_halves(void **)
{
    for (int n = 1; n < 4096; n++) {
        struct weight_view w = {};
        w.bits = 4;
        w.pitch = n * PACK_HALF;
        const struct group_halves halves = group_halves_of(&w);
        for (int i = 0; i <= 1 << 20; i += n)
            for (int j = i > 0 ? i - 1 : 0; j <= i + 1; j++)
                assert_int_equal(group_of_half(halves, j), j / n);
    }
}

static void test_ends_of_rows(void **)
{
    alignas(16) uint16_t row[40];
    for (int i = 0; i < 40; i++)
        row[i] = (uint16_t)(i + 1);
    for (int64_t begin = 0; begin <= 16; begin += 8)
        for (int64_t end = begin; end <= 32; end++)
            for (int64_t k = -8; k < 32; k += 8) {
                const uint4 v = x_eight(row, k, begin, end);
                const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
                for (int i = 0; i < 8; i++) {
                    const int inside = k + i >= begin && k + i < end;
                    assert_int_equal(pairs[i / 2] >> i % 2 * 16 & 0xffff, inside ? (uint32_t)row[k + i] : 0u);
                }
            }
}

/* ---- the simulator's instructions --------------------------------------------------------------------------------- */

static struct backend simulated()
{
    struct backend be = {};
    be.n_threads = 1;
    return be;
}

static float small(int i)
{
    return (float)(i * 37 % 23 - 11);
}

/* A [16, 16], B [16, 8], C [16, 8] of small integers; fragments as mma.h says. */
__global__ void mma_one(float *out)
{
    const int lane = (int)threadIdx.x, g = lane / 4, q = lane % 4;
    uint32_t a[4], b[2];
    float c[4];
    for (int i = 0; i < 4; i++) {
        const int row = g + i % 2 * 8, k = 2 * q + i / 2 * 8;
        a[i] = bf16_pair(small(row * 16 + k), small(row * 16 + k + 1));
        c[i] = small((g + i / 2 * 8) * 8 + 2 * q + i % 2 + 5);
    }
    for (int i = 0; i < 2; i++)
        b[i] = bf16_pair(small((2 * q + 8 * i) * 8 + g + 3), small((2 * q + 8 * i + 1) * 8 + g + 3));
    mma_bf16(c, a, b);
    for (int i = 0; i < 4; i++)
        out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = c[i];
}

static void test_mma(void **)
{
    float out[16 * 8];
    const struct backend be = simulated();
    assert_int_equal(LAUNCH(&be, dim3(1), 32, 0, mma_one, out), 0);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = small(i * 8 + j + 5);
            for (int k = 0; k < 16; k++)
                sum += small(i * 16 + k) * small(k * 8 + j + 3);
            assert_true(out[i * 8 + j] == sum);
        }
}

/* Sums are cut: a term one bit below the largest one's last still counts, but not by itself; two bits below it is gone. */
static void test_cut_sums(void **)
{
    const float ulp = 0x1p-23f, quarters[8] = {ulp / 4, ulp / 4, ulp / 4, ulp / 4, ulp / 4, ulp / 4, ulp / 4, ulp / 4};
    const float half[8] = {ulp / 2}, halves[8] = {ulp / 2, 0, 0, 0, 0, 0, 0, ulp / 2}, under[8] = {-ulp / 2};
    const float tall[8] = {0x1p100f, 1, -0x1p100f}, infinite[8] = {INFINITY}, none[8] = {};
    assert_true(sim_add_eight(1, quarters) == 1 && sim_add_eight(-1, quarters) == -1);
    assert_true(sim_add_eight(1, half) == 1 && sim_add_eight(1, halves) == 1 + ulp);
    assert_true(sim_add_eight(-1, half) == -1 + ulp / 2 && sim_add_eight(1, under) == 1 - ulp / 2);
    assert_true(sim_add_eight(0.75f, tall) == 0 && sim_add_eight(0.75f, none) == 0.75f);
    assert_true(isinf(sim_add_eight(1, infinite)) && isnan(sim_add_eight(-INFINITY, infinite)));
}

/* Four 8 x 8 matrices side by side in a [8][32] tile of numbers. */
__global__ void load_matrices(uint32_t *plain, uint32_t *turned)
{
    SHARED(uint16_t, tile);
    const int lane = (int)threadIdx.x;
    uint32_t r[4];
    for (int i = lane; i < 256; i += 32)
        tile[i] = (uint16_t)i;
    __syncwarp();
    ldmatrix_x4(r, tile + lane % 8 * 32 + lane / 8 * 8);
    for (int i = 0; i < 4; i++)
        plain[i * 32 + lane] = r[i];
    ldmatrix_x4_trans(r, tile + lane % 8 * 32 + lane / 8 * 8);
    for (int i = 0; i < 4; i++)
        turned[i * 32 + lane] = r[i];
}

static void test_ldmatrix(void **)
{
    uint32_t plain[128], turned[128];
    const struct backend be = simulated();
    assert_int_equal(LAUNCH(&be, dim3(1), 32, 512, load_matrices, plain, turned), 0);
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t g = (uint32_t)lane / 4, q = (uint32_t)lane % 4, at = (uint32_t)i * 8;
            assert_int_equal(plain[i * 32 + lane], (g * 32 + at + 2 * q) | (g * 32 + at + 2 * q + 1) << 16);
            assert_int_equal(turned[i * 32 + lane], (2 * q * 32 + at + g) | ((2 * q + 1) * 32 + at + g) << 16);
        }
}

/* Two groups of copies: each lands at its own wait, with zeros behind what it reads. */
__global__ void copy_two(const unsigned char *from, unsigned char *out)
{
    SHARED(unsigned char, to);
    memset(to, 0xee, 32);
    cp_async_16(to, from, 5);
    cp_async_commit();
    cp_async_16(to + 16, from + 16, 16);
    cp_async_commit();
    memcpy(out, to, 32);
    cp_async_wait<1>();
    memcpy(out + 32, to, 32);
    cp_async_wait<0>();
    memcpy(out + 64, to, 32);
}

static void test_copies(void **)
{
    alignas(16) unsigned char from[32];
    unsigned char out[96];
    const struct backend be = simulated();
    for (int i = 0; i < 32; i++)
        from[i] = (unsigned char)(i + 1);
    for (int early = 0; early < 2; early++) { /* the card may do either */
        setenv("GLOWQ_SIM_ORDER", early ? "reverse" : "", 1);
        assert_int_equal(LAUNCH(&be, dim3(1), 1, 32, copy_two, (const unsigned char *)from, out), 0);
        for (int i = 0; i < 32; i++) {
            const int landed = i < 5 ? i + 1 : i < 16 ? 0 : i + 1;
            assert_int_equal(out[i], early ? landed : 0xee);
            assert_int_equal(out[32 + i], early || i < 16 ? landed : 0xee);
            assert_int_equal(out[64 + i], landed);
        }
    }
    unsetenv("GLOWQ_SIM_ORDER");
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),          cmocka_unit_test(test_fragment_columns),
        cmocka_unit_test(test_operands_agree),  cmocka_unit_test(test_codes_of_4_bits),
        cmocka_unit_test(test_codes_of_8_bits), cmocka_unit_test(test_split_of_f16),
        cmocka_unit_test(test_split_of_f32),    cmocka_unit_test(test_groups_of_halves),
        cmocka_unit_test(test_ends_of_rows),    cmocka_unit_test(test_mma),
        cmocka_unit_test(test_cut_sums),        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
