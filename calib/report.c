/* SPDX-License-Identifier: Apache-2.0
 * report.html: the page around the drawings of report_figures.c; see report.h. Self-contained: no script, no font, no
 * request.
 *
 * The two objects come from our own files, but a page must not break on an older or a half-written one: what is missing
 * is shown as a dash, and every string goes through report_text.
 */
#include "calib/report.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/file.h"
#include "calib/report_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char style[] =
    ":root{--ground:#fbfaf8;--ink:#1f2328;--soft:#6a6f76;--line:#e4e1da;--accent:#b4531a;--on:#fff;--p1:#b4531a;--p2:#"
    "2f6f73;"
    "--p3:#8a7a3b;--p4:#5b5f97;--p5:#9aa0a6;--p6:#3d4752;--p7:#b08bbb;--empty:#ece9e2}\n"
    "@media(prefers-color-scheme:dark){:root{--ground:#16181b;--ink:#e6e4df;--soft:#979ba1;--line:#2c3036;--accent:#"
    "f0975a;"
    "--on:#16181b;--p1:#f0975a;--p2:#5fb3b3;--p3:#cdb86a;--p4:#9a9ee0;--p5:#6c727a;--p6:#b8bec6;--p7:#cfa9d8;--empty:#"
    "24282d}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 "
    "system-ui,-apple-system,"
    "\"Segoe UI\",sans-serif}\n"
    "main{max-width:968px;margin:0 auto;padding:48px 24px 72px}header p{margin:0;color:var(--soft)}\n"
    "h1{font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:2px 0 4px}\n"
    "h2{font-size:17px;font-weight:650;margin:52px 0 2px}h2+p{margin:0 0 16px;color:var(--soft);max-width:78ch}\n"
    ".facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:24px;margin:36px 0 "
    "0;padding:24px 0 0;"
    "border-top:1px solid var(--line)}\n"
    ".facts b{display:block;font-size:26px;font-weight:600;letter-spacing:-.02em;font-variant-numeric:tabular-nums}"
    ".facts span{color:var(--soft)}\n"
    "svg{display:block;width:100%;height:auto}svg text{font:12px system-ui,-apple-system,\"Segoe UI\",sans-serif;"
    "font-variant-numeric:tabular-nums;text-anchor:middle}\n"
    ".axis{fill:var(--soft)}svg .end{text-anchor:end}svg .start{text-anchor:start}.cell{fill:var(--accent)}"
    ".none{fill:var(--empty)}.on{fill:var(--on)}.off{fill:var(--ink)}\n"
    ".grid{stroke:var(--line)}.chord{stroke:var(--soft);stroke-dasharray:3 4}.curve{fill:none;stroke:var(--accent);"
    "stroke-width:2}.above{paint-order:stroke;stroke:var(--ground);stroke-width:5px}.dot{fill:var(--accent);stroke:var("
    "--ground);stroke-width:2}.starved{fill:none;stroke:var(--ink);stroke-width:1.5}\n"
    ".p1{fill:var(--p1)}.p2{fill:var(--p2)}.p3{fill:var(--p3)}.p4{fill:var(--p4)}.p5{fill:var(--p5)}.p6{fill:var(--p6)}"
    ".p7{fill:var(--p7)}"
    ".empty{fill:var(--empty)}\n"
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 24px;margin:12px 0 0;padding:0}.legend "
    "li{display:flex;"
    "align-items:center;gap:7px}.legend svg{width:10px;height:10px}.legend span,.note{color:var(--soft)}.legend b,td{"
    "font-weight:500;font-variant-numeric:tabular-nums}\n"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}th{font-weight:500;color:var(--soft);text-align:"
    "right;"
    "padding:6px 0 6px 16px;border-bottom:1px solid var(--line);white-space:nowrap}td{text-align:right;padding:4px 0 "
    "4px 16px;"
    "white-space:nowrap}\n"
    "th.name,td.name{text-align:left;padding-left:0;padding-right:8px}tr.first td{border-top:1px solid var(--line)}"
    "tbody tr:hover "
    "td{background:var(--empty)}dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:2px "
    "40px;margin:12px 0}dl "
    "div{display:flex;justify-content:space-between;gap:12px}dt{color:var(--soft)}dd{margin:0;text-align:right;"
    "overflow-wrap:anywhere}\n"
    "code,td.hash{font:13px ui-monospace,\"DejaVu Sans Mono\",monospace;overflow-wrap:anywhere}summary{cursor:pointer;"
    "color:var(--soft);margin-top:16px}footer{margin-top:56px;color:var(--soft)}\n"
    "@media print{main{max-width:none;padding:0}h2{break-after:avoid}}\n";

/* ---- words and numbers ------------------------------------------------------------------------------------------- */

void report_text(FILE *f, const char *text)
{
    for (; text && *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", f);
            break;
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        case '\'':
            fputs("&#39;", f);
            break;
        default:
            fputc(*text, f);
        }
    }
}

void report_bytes(FILE *f, double bytes)
{
    char text[BYTES_TEXT];
    fputs(isfinite(bytes) ? format_bytes(bytes, text, sizeof text) : "–", f);
}

void report_seconds(FILE *f, double s)
{
    if (!isfinite(s))
        fputs("–", f);
    else if (s < 0.9995)
        fprintf(f, "%.0f ms", 1000 * s);
    else if (s < 99.5)
        fprintf(f, "%.1f s", s);
    else if (s < 5400)
        fprintf(f, "%.0f min %.0f s", floor(s / 60), fmod(s, 60));
    else
        fprintf(f, "%.0f h %.0f min", floor(s / 3600), floor(fmod(s, 3600) / 60));
}

static void print_percent(FILE *f, double share)
{
    if (isfinite(share))
        fprintf(f, "%.2f%%", 100 * share);
    else
        fputs("–", f);
}

static void print_general(FILE *f, double v)
{
    if (isfinite(v))
        fprintf(f, "%.4g", v);
    else
        fputs("–", f);
}

double report_number(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static const char *string_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ---- the manifest's groups --------------------------------------------------------------------------------------- */

static int kind_of(struct report_data *d, const char *name)
{
    for (int k = 0; k < d->n_kinds; k++)
        if (strcmp(d->kinds[k], name) == 0)
            return k;
    if (d->n_kinds == REPORT_KINDS)
        return -1;
    d->kinds[d->n_kinds] = name;
    return d->n_kinds++;
}

static void sum_up(struct report_data *d)
{
    d->lowest = 1;
    d->highest = 0;
    for (int64_t i = 0; i < d->n_groups; i++) {
        const struct report_group *g = &d->groups[i];
        d->trace += isfinite(g->trace) ? g->trace : 0;
        d->captured += isfinite(g->captured) ? g->captured : 0;
        d->weight_bytes += isfinite(g->weight_bytes) ? g->weight_bytes : 0;
        d->quantized_bytes += isfinite(g->quantized_bytes) ? g->quantized_bytes : 0;
        d->factor_bytes += isfinite(g->factor_bytes) ? g->factor_bytes : 0;
        d->lowest = fmin(d->lowest, g->energy); /* fmin and fmax pass a NaN over */
        d->highest = fmax(d->highest, g->energy);
        d->n_layers = g->layer >= d->n_layers ? g->layer + 1 : d->n_layers;
    }
    /* round the scale outwards to 5%, so that its ends are readable numbers */
    d->lowest = d->lowest > d->highest ? 0 : fmax(0, floor(20 * d->lowest) / 20);
    d->highest = fmin(1, ceil(20 * d->highest) / 20);
}

static int read_groups(struct report_data *d)
{
    int err = OK;
    size_t i;
    const json_t *entry;
    const json_t *list = json_object_get(d->manifest, "groups");
    const int64_t most_layers = 100000;
    if (!(d->groups = calloc(json_array_size(list) + 1, sizeof *d->groups)))
        FAIL(ERR_NOMEM, "%zu groups", json_array_size(list));
    json_array_foreach(list, i, entry)
    {
        const char *name = string_of(entry, "group");
        double layer = report_number(entry, "layer");
        int kind = kind_of(d, name ? name : "?");
        if (!(layer >= 0 && layer < (double)most_layers) || kind < 0)
            FAIL(ERR_FORMAT, "report: group %zu of the manifest has no usable layer or group name", i);
        d->groups[d->n_groups++] = (struct report_group){
            .layer = (int64_t)layer,
            .kind = kind,
            .rank = report_number(entry, "rank"),
            .steps = report_number(entry, "steps"),
            .energy = report_number(entry, "energy"),
            .energy_error = report_number(entry, "energy_error"),
            .trace = report_number(entry, "trace"),
            .captured = report_number(entry, "captured"),
            .error_norm2 = report_number(entry, "error_norm2"),
            .weight_bytes = report_number(entry, "weight_bytes"),
            .quantized_bytes = report_number(entry, "quantized_bytes"),
            .factor_bytes = report_number(entry, "factor_bytes"),
        };
    }
    sum_up(d);
out:
    return err;
}

/* ---- sections ---------------------------------------------------------------------------------------------------- */

static void print_value(FILE *f, const json_t *v)
{
    if (json_is_string(v)) {
        report_text(f, json_string_value(v));
        return;
    }
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
    report_text(f, text);
    free(text);
}

static void fact(FILE *f, void (*print)(FILE *, double), double v, const char *label)
{
    fputs("<div><b>", f);
    print(f, v);
    fprintf(f, "</b><span>%s</span></div>\n", label);
}

static void print_count(FILE *f, double v)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%.0f", v);
    size_t n = strlen(digits);
    if (!isfinite(v)) {
        fputs("–", f);
        return;
    }
    for (size_t i = 0; i < n; i++) { /* thin spaces between thousands */
        if (i > 0 && (n - i) % 3 == 0)
            fputs("\xe2\x80\x89", f);
        fputc(digits[i], f);
    }
}

static void write_head(FILE *f, const struct report_data *d)
{
    const json_t *model = json_object_get(d->manifest, "model"), *settings = json_object_get(d->manifest, "settings");
    const char *family = string_of(model, "family"), *sharing = string_of(settings, "sharing");
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
          "content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light "
          "dark\"><title>GlowQ: ",
          f);
    report_text(f, family);
    fprintf(f, "</title>\n<style>%s</style></head>\n<body><main>\n<header><p>GlowQ calibration</p><h1>", style);
    report_text(f, family ? family : "model");
    fputs(" at ", f);
    print_general(f, report_number(settings, "bits"));
    fputs(" bits</h1><p>", f);
    print_general(f, report_number(model, "n_layers"));
    fputs(" layers, correction of rank ", f);
    print_general(f, report_number(settings, "rank"));
    fprintf(f, ", one right factor per %s</p></header>\n",
            sharing && strcmp(sharing, "module") == 0 ? "linear" : "group of linears");
}

static void write_facts(FILE *f, const struct report_data *d)
{
    const json_t *text = json_object_get(d->manifest, "text");
    fputs("<section class=\"facts\">\n", f);
    if (d->factor_bytes > 0)
        fact(f, print_percent, d->trace > 0 ? d->captured / d->trace : NAN,
             "of the quantization error’s output energy captured");
    fact(f, report_bytes, d->quantized_bytes + d->factor_bytes, "for the linears, correction included");
    fact(f, print_percent, d->weight_bytes > 0 ? (d->quantized_bytes + d->factor_bytes) / d->weight_bytes : NAN,
         "of their size as stored");
    fact(f, print_count, report_number(text, "tokens"), "calibration tokens");
    fact(f, report_seconds, report_number(d->run, "seconds"), "from start to end");
    fputs("</section>\n", f);
}

static void write_bytes(FILE *f, const struct report_data *d)
{
    const struct report_part parts[] = {
        {"codes, scales and zero points", d->quantized_bytes, "p2"},
        {"correction factors A and B", d->factor_bytes, "p1"},
        {"saved", d->weight_bytes - d->quantized_bytes - d->factor_bytes, "empty"},
    };
    fputs("<h2>Bytes</h2><p>The linears, against their size as stored in the checkpoint.</p>\n", f);
    report_bar(f, parts, 3, report_bytes);
}

static void write_time(FILE *f, const struct report_data *d)
{
    enum { MOST = 7 };
    static const char *const classes[MOST] = {"p1", "p2", "p3", "p4", "p5", "p6", "p7"};
    struct report_part parts[MOST + 1];
    const char *stage;
    json_t *seconds;
    int n = 0;
    double known = 0, total = report_number(d->run, "seconds");
    json_object_foreach((json_t *)(uintptr_t)json_object_get(d->run, "stages"), stage, seconds)
    {
        if (n < MOST && json_is_number(seconds)) {
            parts[n] = (struct report_part){stage, json_number_value(seconds), classes[n]};
            known += parts[n++].value;
        }
    }
    if (n == 0)
        return;
    parts[n++] = (struct report_part){"other", isfinite(total) ? total - known : 0, "empty"};
    fputs("<h2>Time</h2><p>By stage, on rank 0. Second moments are summed in the forward pass; what "
          "they take from rank to rank stands by itself.</p>\n",
          f);
    report_bar(f, parts, n, report_seconds);
}

static void write_ranks(FILE *f, const struct report_data *d)
{
    size_t i, slowest = 0;
    const json_t *rank;
    const json_t *ranks = json_object_get(d->run, "ranks");
    double most = -1; /* stays so where no rank says how long it computed */
    if (json_array_size(ranks) == 0)
        return;
    json_array_foreach(ranks, i, rank)
    {
        if (report_number(rank, "seconds") > most) {
            most = report_number(rank, "seconds");
            slowest = i;
        }
    }
    fputs("<h2>Ranks</h2><p>", f);
    if (most >= 0 && json_array_size(ranks) > 1)
        fprintf(f, "Rank %zu computed longest; the others waited for it.", slowest);
    fprintf(f,
            "</p>\n<div class=\"scroll\"><table><thead><tr><th class=\"name\">rank</th><th class=\"name\">host</th>"
            "<th class=\"name\">backend</th><th>threads</th>%s<th>peak memory</th></tr></thead><tbody>\n",
            most >= 0 ? "<th>computing</th>" : "");
    json_array_foreach(ranks, i, rank)
    {
        fputs("<tr><td class=\"name\">", f);
        print_general(f, report_number(rank, "rank"));
        fputs("</td><td class=\"name\">", f);
        report_text(f, string_of(rank, "host"));
        fputs("</td><td class=\"name\">", f);
        report_text(f, string_of(rank, "backend"));
        fputs("</td><td>", f);
        print_general(f, report_number(rank, "threads"));
        fputs("</td>", f);
        if (most >= 0) {
            fputs("<td>", f);
            report_seconds(f, report_number(rank, "seconds"));
            fputs("</td>", f);
        }
        fputs("<td>", f);
        report_bytes(f, report_number(rank, "peak_rss_bytes"));
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

static void write_groups(FILE *f, const struct report_data *d)
{
    int64_t previous = -1;
    fputs(
        "<h2>Groups</h2><p>The modules of a group read the same input and share B. ‖E‖ is the Frobenius norm of the "
        "quantization error; energy is the captured share of tr E S Eᵀ.</p>\n<div class=\"scroll\"><table><thead><tr>"
        "<th class=\"name\">layer</th><th class=\"name\">group</th><th>rank</th><th>steps</th><th>energy</th><th>±</th>"
        "<th>‖E‖</th><th>as stored</th><th>quantized</th><th>factors</th></tr></thead><tbody>\n",
        f);
    for (int64_t i = 0; i < d->n_groups; i++) {
        const struct report_group *g = &d->groups[i];
        fprintf(f, "<tr%s><td class=\"name\">", g->layer != previous ? " class=\"first\"" : "");
        if (g->layer != previous)
            fprintf(f, "%lld", (long long)g->layer);
        previous = g->layer;
        fputs("</td><td class=\"name\">", f);
        report_text(f, d->kinds[g->kind]);
        fputs("</td><td>", f);
        print_general(f, g->rank);
        fputs("</td><td>", f);
        print_general(f, g->steps);
        fputs("</td><td>", f);
        print_percent(f, g->energy);
        fputs("</td><td>", f);
        print_percent(f, g->energy_error);
        fputs("</td><td>", f);
        print_general(f, sqrt(g->error_norm2));
        fputs("</td><td>", f);
        report_bytes(f, g->weight_bytes);
        fputs("</td><td>", f);
        report_bytes(f, g->quantized_bytes);
        fputs("</td><td>", f);
        report_bytes(f, g->factor_bytes);
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* The manifest's files: bytes and hash. */
static void write_files(FILE *f, const json_t *files)
{
    const char *name;
    json_t *entry;
    fputs("<table><tbody>\n", f);
    json_object_foreach((json_t *)(uintptr_t)files, name, entry)
    {
        fputs("<tr><td class=\"name\">", f);
        report_text(f, name);
        fputs("</td><td>", f);
        report_bytes(f, report_number(entry, "bytes"));
        fputs("</td><td class=\"name hash\">", f);
        report_text(f, string_of(entry, "sha256"));
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table>\n", f);
}

/* An object's members as pairs, several beside each other where there is room. */
static void write_object(FILE *f, const json_t *object)
{
    const char *key;
    json_t *value;
    fputs("<dl>", f);
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        fputs("<div><dt>", f);
        report_text(f, key);
        fputs("</dt><dd>", f);
        print_value(f, value);
        fputs("</dd></div>\n", f);
    }
    fputs("</dl>\n", f);
}

static void write_settings(FILE *f, const struct report_data *d)
{
    fputs("<h2>Settings</h2><p><code>", f);
    report_text(f, string_of(d->run, "command"));
    fputs("</code></p>\n", f);
    write_object(f, json_object_get(d->manifest, "settings"));
    fputs("<details><summary>Model, text and files</summary>\n", f);
    write_object(f, json_object_get(d->manifest, "model"));
    write_object(f, json_object_get(d->manifest, "text"));
    write_files(f, json_object_get(d->manifest, "files"));
    fputs("</details>\n<footer>Everything but times, hosts and ranks is the same for any number of ranks.", f);
    if (string_of(d->run, "started")) {
        fputs(" Started ", f);
        report_text(f, string_of(d->run, "started"));
        fputc('.', f);
    }
    fputs("</footer>\n</main></body></html>\n", f);
}

static void write_page(FILE *f, const struct report_data *d)
{
    write_head(f, d);
    write_facts(f, d);
    if (d->factor_bytes > 0) {
        fputs(
            "<h2>Captured energy</h2><p>Share of the error’s output energy that the correction removes, in percent, by "
            "layer and group.</p>\n",
            f);
        report_heat_map(f, d);
        fputs("<h2>What each byte buys</h2><p>Captured share of the whole model’s error energy as groups are corrected "
              "one "
              "after another. The elbow is the point farthest from the straight line.</p>\n",
              f);
        report_elbow(f, d);
    }
    report_experts(f, d);
    write_bytes(f, d);
    write_time(f, d);
    write_ranks(f, d);
    write_groups(f, d);
    write_settings(f, d);
}

int report_write(const char *path, const json_t *manifest, const json_t *run)
{
    int err = OK;
    struct report_data d = {.manifest = manifest, .run = run};
    char *page = NULL;
    size_t n = 0;
    FILE *f = NULL;
    TRY(read_groups(&d));
    if (!(f = open_memstream(&page, &n)))
        FAIL(ERR_NOMEM, "%s: a page", path);
    write_page(f, &d);
    int failed = ferror(f);
    failed |= fclose(f) != 0;
    f = NULL;
    if (failed)
        FAIL(ERR_NOMEM, "%s: a page", path);
    TRY(file_publish(path, page, n));
out:
    if (f)
        fclose(f);
    free(page);
    free(d.groups);
    return err;
}
