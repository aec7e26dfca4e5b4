/* SPDX-License-Identifier: Apache-2.0
 * report_write: the page holds the manifest's facts, is closed markup, draws what the numbers say, asks for nothing
 * from elsewhere, and survives strings that look like markup and fields that aren't there.
 */
#include "base/err.h"
#include "base/file.h"
#include "calib/report.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const kinds[] = {"qkv", "o", "gate_up", "down"};
enum { N_KINDS = 4 };

/* Energies differ from cell to cell, so that each can be looked for. */
static double energy_of(int layer, int kind)
{
    return 0.2 + 0.0123 * layer + 0.1071 * kind;
}

static json_t *make_manifest(int n_layers)
{
    json_t *groups = json_array();
    for (int l = 0; l < n_layers; l++)
        for (int k = 0; k < N_KINDS; k++) {
            double trace = 100.0 / (1 + k);
            json_array_append_new(
                groups, json_pack("{s:i,s:s,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:i,s:i,s:i}", "layer", l, "group", kinds[k],
                                  "rank", 64, "steps", 2 + k % 2, "energy", energy_of(l, k), "energy_error", 0.004,
                                  "trace", trace, "captured", trace * energy_of(l, k), "error_norm2", 4.0 + l,
                                  "weight_bytes", 786432, "quantized_bytes", 208896, "factor_bytes", 32768 * (1 + k)));
        }
    return json_pack("{s:s,s:i,s:{s:s,s:i},s:{s:i,s:i,s:s},s:{s:s,s:s,s:i,s:i},s:o,s:{s:{s:i,s:s}}}", "format", "glowq",
                     "version", 1, "model", "family", "llama", "n_layers", n_layers, "settings", "bits", 4, "rank", 64,
                     "solver", "krylov", "text", "sha256", "ab12", "ids_sha256", "cd34", "sequences", 128, "tokens",
                     1234567, "groups", groups, "files", "layers/0000.h5", "bytes", 1000, "sha256", "ef56");
}

static json_t *make_run(void)
{
    return json_pack(
        "{s:s,s:s,s:f,s:{s:f,s:f,s:f,s:f,s:f,s:f},s:[{s:i,s:s,s:s,s:i,s:f,s:I},{s:i,s:s,s:s,s:i,s:f,s:I}]}", "command",
        "glowq calibrate --model dense --text a.txt", "started", "2026-05-17T10:11:12Z", "seconds", 83.5, "stages",
        "read", 0.5, "forward", 12.0, "moments", 30.0, "quantize", 1.0, "solve", 36.0, "write", 2.0, "ranks", "rank", 0,
        "host", "node-a", "backend", "cpu avx512", "threads", 1, "seconds", 70.0, "peak_rss_bytes",
        (json_int_t)312000000, "rank", 1, "host", "node-b", "backend", "cpu avx512", "threads", 1, "seconds", 75.0,
        "peak_rss_bytes", (json_int_t)298000000);
}

static char *write_and_read(const char *path, json_t *manifest, json_t *run)
{
    char *page = NULL;
    size_t n = 0;
    assert_int_equal(report_write(path, manifest, run), OK);
    assert_int_equal(file_read(path, 64 << 20, &page, &n), OK);
    assert_int_equal(strlen(page), n);
    json_decref(manifest);
    json_decref(run);
    return page;
}

static int count(const char *page, const char *what)
{
    int n = 0;
    for (const char *p = page; (p = strstr(p, what)); p += strlen(what))
        n++;
    return n;
}

/* Every tag that is opened is closed in order; attributes are quoted; no raw '<' in text. */
static void assert_closed_markup(const char *page)
{
    static const char *const voids[] = {"meta", "!doctype"};
    char stack[64][16];
    int depth = 0;
    for (const char *p = page; (p = strchr(p, '<')); p++) {
        char name[16];
        int closing = p[1] == '/';
        const char *end = strchr(p, '>');
        assert_non_null(end);
        sscanf(p + 1 + closing, "%15[a-z!0-9]", name);
        int quotes = 0;
        for (const char *q = p; q < end; q++)
            quotes += *q == '"';
        assert_int_equal(quotes % 2, 0);
        if (end[-1] == '/' || strcmp(name, voids[0]) == 0 || strcmp(name, voids[1]) == 0)
            continue;
        if (closing) {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth], name);
        } else {
            assert_true(depth < 64);
            snprintf(stack[depth++], sizeof stack[0], "%s", name);
        }
    }
    assert_int_equal(depth, 0);
}

static void test_facts(void **state)
{
    (void)state;
    enum { LAYERS = 6 };
    double trace = 0, captured = 0;
    char text[64];
    char *page = write_and_read("report_facts.html", make_manifest(LAYERS), make_run());
    assert_closed_markup(page);
    for (int l = 0; l < LAYERS; l++)
        for (int k = 0; k < N_KINDS; k++) {
            trace += 100.0 / (1 + k);
            captured += 100.0 / (1 + k) * energy_of(l, k);
            snprintf(text, sizeof text, "layer %d, %s: %.2f%%", l, kinds[k], 100 * energy_of(l, k));
            assert_int_equal(count(page, text), 1); /* the cell */
            snprintf(text, sizeof text, "<td>%.2f%%</td>", 100 * energy_of(l, k));
            assert_int_equal(count(page, text), 1); /* the table's row */
        }
    snprintf(text, sizeof text, "<b>%.2f%%</b>", 100 * captured / trace);
    assert_int_equal(count(page, text), 1);
    /* 24 groups: 208896 of codes each, 32768 * (1 + 2 + 3 + 4) of factors a layer */
    double bytes = 24 * 208896.0 + 6 * 10 * 32768.0;
    snprintf(text, sizeof text, "<b>%.1f MiB</b><span>for the linears", bytes / 1048576);
    assert_int_equal(count(page, text), 1);
    snprintf(text, sizeof text, "<b>%.2f%%</b><span>of their size as stored", 100 * bytes / (24 * 786432.0));
    assert_int_equal(count(page, text), 1);
    assert_int_equal(count(page, "1\xe2\x80\x89"
                                 "234\xe2\x80\x89"
                                 "567</b><span>calibration tokens"),
                     1);
    assert_int_equal(count(page, "Rank 1 computed longest"), 1);
    assert_int_equal(count(page, "other <b>2.0 s</b>"), 1); /* 83.5 less the stages' 81.5 */
    assert_int_equal(count(page, "298 MiB"), 1);
    assert_int_equal(count(page, "ef56"), 1);
    assert_int_equal(count(page, "nan") + count(page, "inf\""), 0);
    free(page);
}

/* Ten groups that capture much and ninety that capture little: the curve bends where the good ones end. */
static void test_elbow(void **state)
{
    (void)state;
    json_t *manifest = make_manifest(25);
    json_t *groups = json_object_get(manifest, "groups");
    for (size_t i = 0; i < json_array_size(groups); i++) {
        json_t *g = json_array_get(groups, i);
        json_object_set_new(g, "factor_bytes", json_integer(1000));
        json_object_set_new(g, "captured", json_real(i % 10 == 3 ? 50.0 : 1.0));
    }
    char *page = write_and_read("report_elbow.html", manifest, make_run());
    assert_int_equal(count(page, "elbow: 10 of 100 groups, 9.8 KiB, 84.7% of what all capture"), 1); /* 500 of 590 */
    assert_closed_markup(page);
    free(page);
}

static void test_escapes(void **state)
{
    (void)state;
    json_t *manifest = make_manifest(2), *run = make_run();
    const char *evil = "<script>alert('&\"')</script>";
    json_object_set_new(json_object_get(manifest, "model"), "family", json_string(evil));
    json_object_set_new(json_object_get(manifest, "settings"), "</table>", json_string(evil));
    json_object_set_new(json_array_get(json_object_get(manifest, "groups"), 0), "group", json_string(evil));
    json_object_set_new(json_array_get(json_object_get(run, "ranks"), 0), "host", json_string(evil));
    json_object_set_new(run, "command", json_string(evil));
    json_object_set_new(json_object_get(run, "stages"), evil, json_real(1));
    char *page = write_and_read("report_escapes.html", manifest, run);
    assert_int_equal(count(page, "<script"), 0);
    assert_true(count(page, "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;") >= 6);
    assert_closed_markup(page);
    free(page);
}

static void test_asks_for_nothing(void **state)
{
    (void)state;
    char *page = write_and_read("report_alone.html", make_manifest(3), make_run());
    assert_int_equal(count(page, "http") + count(page, "src=") + count(page, "url(") + count(page, "@import"), 0);
    free(page);
}

/* No correction: no heat map, and nothing divided by zero. */
static void test_plain(void **state)
{
    (void)state;
    json_t *manifest = make_manifest(2);
    json_t *groups = json_object_get(manifest, "groups");
    for (size_t i = 0; i < json_array_size(groups); i++) {
        json_t *g = json_array_get(groups, i);
        json_object_set_new(g, "factor_bytes", json_integer(0));
        json_object_set_new(g, "captured", json_real(0));
        json_object_set_new(g, "energy", json_real(0));
    }
    char *page = write_and_read("report_plain.html", manifest, make_run());
    assert_int_equal(count(page, "Captured energy"), 0);
    assert_int_equal(count(page, "nan") + count(page, "inf\""), 0);
    assert_closed_markup(page);
    free(page);
}

/* Experts: shares of the choices, starved ones outlined and named, what one B saves; nothing of it without experts. */
static void test_experts(void **state)
{
    (void)state;
    json_t *manifest = make_manifest(2);
    json_object_set_new(manifest, "experts",
                        json_pack("[{s:i,s:i,s:i,s:[i,i,i,i],s:[f,f,f,f],s:[f,f,f,f],s:[f,f,f,f],s:[]},"
                                  "{s:i,s:i,s:i,s:[i,i,i,i],s:[f,f,f,f],s:[f,f,f,f],s:[f,f,f,f],s:[i,i]}]",
                                  "layer", 0, "rank", 24, "down_rank", 8, "tokens", 1000, 2000, 3000, 2000, "weight",
                                  0.25, 0.5, 0.75, 0.5, "gate_up_energy", 0.4123, 0.5, 0.6, 0.7, "down_energy", 0.3,
                                  0.31, 0.32, 0.33, "starved", "layer", 1, "rank", 24, "down_rank", 8, "tokens", 0,
                                  5000, 2995, 5, "weight", 0.0, 0.9, 0.6, 0.01, "gate_up_energy", 0.2345, 0.5, 0.6, 0.7,
                                  "down_energy", 0.1, 0.2, 0.3, 0.9182, "starved", 0, 3));
    json_object_set_new(manifest, "sharing",
                        json_pack("{s:i,s:i,s:[{s:s,s:i,s:i,s:i}]}", "rank", 24, "layers", 2, "bytes", "experts",
                                  "routed", "b_per_layer", 276, "b_per_pair", 567, "b_per_matrix", 1000));
    char *page = write_and_read("report_experts.html", manifest, make_run());
    assert_closed_markup(page);
    assert_int_equal(count(page, "expert 2: 37.50%") + count(page, "expert 2: 37.44%"),
                     2); /* of 8000 choices a layer */
    assert_int_equal(count(page, "class=\"starved\""), 3 * 2);
    assert_int_equal(count(page, ">0, 3</td>"), 1);
    assert_int_equal(count(page, ">none</td>"), 1);
    assert_int_equal(count(page, "<td>41.2%</td>"), 1);
    assert_int_equal(count(page, "expert 3: 91.82%"), 1);
    assert_int_equal(count(page, "<td>51.3%</td>"), 1); /* 1 - 276 / 567 */
    assert_int_equal(count(page, "<td>72.4%</td>"), 1);
    assert_int_equal(count(page, "nan") + count(page, "inf\""), 0);
    free(page);
    page = write_and_read("report_dense.html", make_manifest(2), make_run());
    assert_int_equal(count(page, "<h2>Experts") + count(page, "One B for all") + count(page, "Coverage"), 0);
    free(page);
    manifest = make_manifest(1); /* what is missing is a dash */
    json_object_set_new(manifest, "experts", json_pack("[{},{s:i,s:[s]}]", "layer", 3, "tokens", "many"));
    json_object_set_new(manifest, "sharing", json_pack("{s:i,s:[{}]}", "rank", 8, "bytes"));
    page = write_and_read("report_experts_sparse.html", manifest, make_run());
    assert_closed_markup(page);
    assert_int_equal(count(page, "nan"), 0);
    free(page);
}

static void test_missing_fields(void **state)
{
    (void)state;
    char *page = write_and_read("report_empty.html", json_object(), json_object());
    assert_closed_markup(page);
    assert_int_equal(count(page, "nan"), 0);
    free(page);
    page = write_and_read(
        "report_sparse.html",
        json_pack("{s:[{s:i,s:s},{s:i,s:s}]}", "groups", "layer", 0, "group", "qkv", "layer", 1, "group", "o"),
        json_object());
    assert_closed_markup(page);
    assert_int_equal(count(page, "nan"), 0);
    free(page);
}

static void test_refuses(void **state)
{
    (void)state;
    json_t *manifest = json_pack("{s:[{s:i,s:s}]}", "groups", "layer", -1, "group", "qkv");
    json_t *run = json_object();
    err_quiet(1);
    assert_int_equal(report_write("report_refused.html", manifest, run), ERR_FORMAT);
    assert_false(file_exists("report_refused.html"));
    json_decref(manifest);
    manifest = json_object();
    assert_int_equal(report_write("no/such/folder/report.html", manifest, run), ERR_IO);
    err_quiet(0);
    json_decref(manifest);
    json_decref(run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts),          cmocka_unit_test(test_elbow),
        cmocka_unit_test(test_escapes),        cmocka_unit_test(test_asks_for_nothing),
        cmocka_unit_test(test_plain),          cmocka_unit_test(test_experts),
        cmocka_unit_test(test_missing_fields), cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
