/* SPDX-License-Identifier: Apache-2.0
 * base/: random numbers, conversions, views. What is compared with comes from elsewhere: golden/philox.txt, f64 arithmetic, moments
 * of the normal distribution. */
#include "base/err.h"
#include "base/mat.h"
#include "base/philox.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- random numbers ---- */

static void test_philox_equals_the_golden_file(void **state)
{
    (void)state;
    char path[PATH_MAX], line[256];
    int n = 0;
    snprintf(path, sizeof path, "%s/tests/golden/philox.txt", getenv("GLOWQ_SOURCE_DIR"));
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        uint32_t c[4], k[2], want[4], got[4];
        if (line[0] == '#')
            continue;
        assert_int_equal(sscanf(line, "%x %x %x %x %x %x %x %x %x %x", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1],
                                &want[0], &want[1], &want[2], &want[3]),
                         10);
        philox4x32(c, k, got);
        assert_memory_equal(got, want, sizeof got);
        n++;
    }
    fclose(f);
    assert_true(n >= 30);
}

/* The place of seed, stream, sub and index in counter and key is part of every published result: one golden line pins it. */
static void test_philox_counter_layout(void **state)
{
    (void)state;
    const uint64_t seed = 5ull << 32 | 1, index = 2ull << 32 | 1;
    assert_true(philox_u64(seed, STREAM_SAMPLING, 3, index) == 0xb53437792e574d30ull);
    assert_true(philox_uniform(seed, STREAM_SAMPLING, 3, index) ==
                (double)(0xb53437792e574d30ull >> 11) / 9007199254740992.0);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Bounds are 5 standard deviations of each statistic under the hypothesis; the seed is fixed, so they hold or don't for good. */
static void test_normals_are_normal_and_independent(void **state)
{
    (void)state;
    enum { N = 100000 };
    const double root = sqrt((double)N);
    double *x = malloc(N * sizeof *x), *other = malloc(N * sizeof *other);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0, worst = 0;
    for (int i = 0; i < N; i++) {
        x[i] = philox_normal(7, STREAM_SKETCH, 0, (uint64_t)i);
        assert_true(isfinite(x[i]));
        m1 += x[i];
        m2 += x[i] * x[i];
        m3 += x[i] * x[i] * x[i];
        m4 += x[i] * x[i] * x[i] * x[i];
        lag += i > 0 ? x[i] * x[i - 1] : 0;
    }
    assert_true(fabs(m1) / root < 5);
    assert_true(fabs(m2 - N) / root < 5 * sqrt(2.0));
    assert_true(fabs(m3) / root < 5 * sqrt(15.0));
    assert_true(fabs(m4 - 3.0 * N) / root < 5 * sqrt(96.0));
    assert_true(fabs(lag) / root < 5);
    /* another seed, stream or sub is another sequence */
    for (int which = 0; which < 3; which++) {
        double cross = 0;
        for (int i = 0; i < N; i++) {
            other[i] =
                philox_normal(which == 0 ? 8 : 7, which == 1 ? STREAM_PROBES : STREAM_SKETCH, which == 2, (uint64_t)i);
            cross += x[i] * other[i];
        }
        assert_true(fabs(cross) / root < 5);
    }
    /* Kolmogorov-Smirnov: P(sqrt(N) D > 2.3) = 2 exp(-2 * 2.3^2) = 5e-5 */
    qsort(x, N, sizeof *x, ascending);
    for (int i = 0; i < N; i++) {
        double cdf = 0.5 * erfc(-x[i] / sqrt(2.0));
        worst = fmax(worst, fmax(fabs(cdf - (double)i / N), fabs(cdf - (double)(i + 1) / N)));
    }
    assert_true(worst * root < 2.3);
    free(x);
    free(other);
}

/* ---- conversions ---- */

struct narrow {
    enum dtype dtype;
    int mantissa, bias; /* bits stored, exponent bias */
    float (*widen)(uint16_t);
    uint16_t (*round)(float);
};
static const struct narrow formats[] = {{DT_F16, 10, 15, f16_to_f32, f32_to_f16},
                                        {DT_BF16, 7, 127, bf16_to_f32, f32_to_bf16}};
enum { N_FORMATS = sizeof formats / sizeof formats[0] };

/* What the bits mean, by the definition of the format. */
static double meaning(const struct narrow *f, uint16_t bits)
{
    int exponent = (bits & 0x7fff) >> f->mantissa, mantissa = bits & ((1 << f->mantissa) - 1);
    double v = exponent == 2 * f->bias + 1 ? (mantissa ? NAN : INFINITY)
               : exponent == 0             ? ldexp(mantissa, 1 - f->bias - f->mantissa)
                                           : ldexp((1 << f->mantissa) + mantissa, exponent - f->bias - f->mantissa);
    return bits & 0x8000 ? -v : v;
}

/* v to the nearest number of the format, ties to even, in f64 with the exponent range unbounded above, then the overflow. */
static double nearest(const struct narrow *f, double v)
{
    if (v == 0 || !isfinite(v))
        return v;
    int exponent = ilogb(v) < 1 - f->bias ? 1 - f->bias : ilogb(v);
    double unit = ldexp(1, exponent - f->mantissa), rounded = nearbyint(v / unit) * unit;
    double largest = ldexp(2 - ldexp(1, -f->mantissa), f->bias);
    return fabs(rounded) > largest ? copysign(INFINITY, v) : rounded;
}

static void assert_rounds(const struct narrow *f, float v)
{
    float got = f->widen(f->round(v));
    double want = nearest(f, v);
    if (!(got == want) || !signbit(got) != !signbit(v))
        fail_msg("%s of %a: %a, nearest is %a", dtype_name(f->dtype), (double)v, (double)got, want);
}

static void test_every_16_bit_value_round_trips(void **state)
{
    (void)state;
    for (int i = 0; i < N_FORMATS; i++)
        for (uint32_t bits = 0; bits < 65536; bits++) {
            const struct narrow *f = &formats[i];
            float v = f->widen((uint16_t)bits);
            double want = meaning(f, (uint16_t)bits);
            if (isnan(want)) {
                assert_true(isnan(v) && isnan(f->widen(f->round(v))));
                continue;
            }
            assert_true(v == want && !signbit(v) == !signbit(want));
            assert_int_equal(f->round(v), bits);
        }
}

/* Every halfway case of both formats, and its two neighbours in f32; subnormals and the step to infinity among them. */
static void test_rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (int i = 0; i < N_FORMATS; i++) {
        const struct narrow *f = &formats[i];
        const uint16_t largest = (uint16_t)(((2 * f->bias + 1) << f->mantissa) - 1);
        for (uint32_t bits = 0; bits <= largest; bits++) {
            double low = meaning(f, (uint16_t)bits);
            double high = bits < largest ? meaning(f, (uint16_t)(bits + 1)) : low + ldexp(1, f->bias - f->mantissa);
            float middle = (float)((low + high) / 2);
            assert_true(middle == (low + high) / 2);
            for (int sign = -1; sign <= 1; sign += 2) {
                assert_rounds(f, (float)sign * middle);
                assert_rounds(f, (float)sign * nextafterf(middle, 0));
                assert_rounds(f, (float)sign * nextafterf(middle, INFINITY));
            }
        }
        /* and 2^20 bit patterns from everywhere */
        for (uint64_t j = 0; j < 1 << 20; j++) {
            uint32_t u = (uint32_t)philox_u64(1, STREAM_WEIGHTS, (uint32_t)i, j);
            float v;
            memcpy(&v, &u, sizeof v);
            if (isnan(v))
                assert_true(isnan(f->widen(f->round(v))));
            else
                assert_rounds(f, v);
        }
        assert_rounds(f, INFINITY);
        assert_rounds(f, -FLT_MAX);
        assert_rounds(f, -0.0f);
        assert_rounds(f, FLT_TRUE_MIN);
        /* a NaN whose payload sits only in the bits that are dropped */
        const uint32_t low_payload = 0x7f800001u;
        float nan_low;
        memcpy(&nan_low, &low_payload, sizeof nan_low);
        assert_true(isnan(f->widen(f->round(nan_low))));
    }
}

/* All pairs agree with going through f64; f64 rounds to 16 bits once, not by way of f32. */
static void test_convert_rounds_once(void **state)
{
    (void)state;
    static const enum dtype kinds[] = {DT_F32, DT_F64, DT_BF16, DT_F16};
    const double values[] = {0,
                             -0.0,
                             1,
                             -1.5,
                             65504,
                             -65519.999999,
                             65520,
                             1e-8,
                             3e38,
                             1e300,
                             -1e-300,
                             INFINITY,
                             1.0 / 3,
                             0x1p-25,
                             0x1.8p-25,
                             0x1.002p0,
                             0x1.00200000001p0,
                             0x1.001ffffffffp0,
                             0x1.00a00000001p0,
                             0x1.01p0,
                             0x1.0100000001p0,
                             0x1.02fffffffffp0,
                             0x1.fffffep127,
                             -0x1p-134,
                             -0x1.0000001p-134};
    enum { N = sizeof values / sizeof values[0] };
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++) {
            double source[N], target[N], seen[N], back[N]; /* room for the widest */
            convert(source, kinds[from], values, DT_F64, N);
            convert(target, kinds[to], source, kinds[from], N);
            convert(seen, DT_F64, source, kinds[from], N);
            convert(back, DT_F64, target, kinds[to], N);
            for (int i = 0; i < N; i++) {
                double want = seen[i];
                for (int f = 0; f < N_FORMATS; f++)
                    want = formats[f].dtype == kinds[to] ? nearest(&formats[f], seen[i]) : want;
                want = kinds[to] == DT_F32 ? (double)(float)want : want;
                if (!(back[i] == want) || !signbit(back[i]) != !signbit(want))
                    fail_msg("%s to %s of %a: %a, nearest is %a", dtype_name(kinds[from]), dtype_name(kinds[to]),
                             seen[i], back[i], want);
            }
            double nan_in = NAN, nan_out;
            convert(source, kinds[from], &nan_in, DT_F64, 1);
            convert(target, kinds[to], source, kinds[from], 1);
            convert(&nan_out, DT_F64, target, kinds[to], 1);
            assert_true(isnan(nan_out));
        }
}

static void test_views(void **state)
{
    (void)state;
    float data[6 * 5];
    static const size_t bytes[] = {
        [DT_F32] = 4, [DT_F64] = 8, [DT_BF16] = 2, [DT_F16] = 2, [DT_I64] = 8, [DT_I32] = 4, [DT_U8] = 1};
    struct mat m = mat_view(data, DT_F32, 6, 5);
    struct mat part = mat_rows(&m, 2, 3);
    struct mat block = mat_cols(&part, 1, 2);
    assert_true(m.ld == 5 && mat_bytes(&m) == sizeof data);
    assert_true(part.data == data + 10 && part.rows == 3 && part.cols == 5 && part.ld == 5);
    assert_true(block.data == data + 11 && block.rows == 3 && block.cols == 2 && block.ld == 5 &&
                mat_bytes(&block) == 24);
    struct mat second = mat_rows(&block, 1, 2); /* a view of a view steps by the leading dimension */
    assert_true(second.data == data + 16);
    assert_true(mat_bytes(&(struct mat){.dtype = DT_F64, .rows = 1 << 20, .cols = 1 << 20}) == (size_t)8 << 40);
    for (int t = DT_F32; t <= DT_U8; t++) {
        assert_true(dtype_bytes((enum dtype)t) == bytes[t]);
        assert_non_null(dtype_name((enum dtype)t));
    }
    assert_string_equal(dtype_name(DT_BF16), "bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_equals_the_golden_file),
        cmocka_unit_test(test_philox_counter_layout),
        cmocka_unit_test(test_normals_are_normal_and_independent),
        cmocka_unit_test(test_every_16_bit_value_round_trips),
        cmocka_unit_test(test_rounding_is_to_nearest_even),
        cmocka_unit_test(test_convert_rounds_once),
        cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
