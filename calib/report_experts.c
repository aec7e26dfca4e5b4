/* SPDX-License-Identifier: Apache-2.0
 * The report's sections about experts: who was chosen how often and who starved, what the correction captures of each, and what one
 * B for all gates and ups of a layer saves.
 */
#include "calib/report_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- experts by layer, as heat maps ------------------------------------------------------------------------------- */

static double element(const json_t *list, size_t i)
{
    const json_t *v = json_array_get(list, i);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* What isn't there is a dash. */
static void print_integer(FILE *f, double v)
{
    if (isfinite(v))
        fprintf(f, "%.0f", v);
    else
        fputs("–", f);
}

static double sum_of(const json_t *list)
{
    double sum = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        sum += element(list, i);
    return sum;
}

static int is_starved(const json_t *layer, size_t expert)
{
    const json_t *list = json_object_get(layer, "starved");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (element(list, i) == (double)expert)
            return 1;
    return 0;
}

/* What is drawn of one expert: the share of a layer's choices that fell on it, or a share that the manifest has itself. */
struct map {
    const char *key, *label;
    int is_share;
};

static double value_of(const struct map *map, const json_t *layer, size_t expert)
{
    const json_t *list = json_object_get(layer, map->key);
    const double v = element(list, expert);
    return map->is_share ? v / sum_of(list) : v;
}

static void map_cell(FILE *f, const struct map *map, const json_t *layer, size_t e, double highest, const double box[4])
{
    const double faintest = 0.06, v = value_of(map, layer, e);
    fputs("<g><title>layer ", f);
    print_integer(f, report_number(layer, "layer"));
    fprintf(f, ", expert %zu: ", e);
    if (isfinite(v))
        fprintf(f, "%.2f%%", 100 * v);
    fprintf(f, "</title><rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"",
            isfinite(v) ? "cell" : "cell none", box[0], box[1], box[2], box[3]);
    if (isfinite(v))
        fprintf(f, " fill-opacity=\"%.3f\"", faintest + (1 - faintest) * (v > 0 ? v / highest : 0));
    fputs("/>", f);
    if (is_starved(layer, e))
        fprintf(f, "<rect class=\"starved\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", box[0] + 1,
                box[1] + 1, fmax(box[2] - 2, 1), fmax(box[3] - 2, 1));
    fputs("</g>\n", f);
}

/* Layers downwards, experts across. */
static void write_map(FILE *f, const struct map *map, const json_t *layers)
{
    const double left = 84, right = 920, h = 16, gap = 1;
    size_t i, n_experts = 0;
    double highest = 0;
    const json_t *layer;
    json_array_foreach(layers, i, layer)
    {
        const size_t n = json_array_size(json_object_get(layer, map->key));
        n_experts = n > n_experts ? n : n_experts;
        for (size_t e = 0; e < n; e++)
            highest = fmax(highest, value_of(map, layer, e));
    }
    if (n_experts == 0 || !(highest > 0))
        return;
    const double w = fmin((right - left) / (double)n_experts, 48), bottom = (double)json_array_size(layers) * (h + gap);
    const size_t every = n_experts > 32 ? 16 : n_experts > 16 ? 4 : 1;
    fprintf(f, "<svg viewBox=\"0 0 920 %.0f\" role=\"img\" aria-label=\"%s\">\n", bottom + 24, map->label);
    json_array_foreach(layers, i, layer)
    {
        const double y = (double)i * (h + gap);
        fprintf(f, "<text class=\"axis end\" x=\"%.1f\" y=\"%.1f\">layer ", left - 10, y + h - 3);
        print_integer(f, report_number(layer, "layer"));
        fputs("</text>\n", f);
        for (size_t e = 0; e < json_array_size(json_object_get(layer, map->key)); e++)
            map_cell(f, map, layer, e, highest, (double[4]){left + (double)e * w, y, w > 4 ? w - gap : w, h});
    }
    for (size_t e = 0; e < n_experts; e += every)
        fprintf(f, "<text class=\"axis mid\" x=\"%.1f\" y=\"%.1f\">%zu</text>\n", left + ((double)e + 0.5) * w,
                bottom + 16, e);
    fprintf(f, "<text class=\"axis end\" x=\"%.1f\" y=\"%.1f\">expert</text>\n</svg>\n", left - 10, bottom + 16);
    fprintf(f, "<p class=\"note\">Full colour is %.1f%%.</p>\n", 100 * highest);
}

/* ---- tables ------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Least, median and largest of a list, as cells. */
static void write_spread(FILE *f, const json_t *list, double unit, const char *format)
{
    const size_t n = json_array_size(list);
    double *v = malloc((n + 1) * sizeof *v);
    for (size_t i = 0; v && i < n; i++)
        v[i] = element(list, i);
    if (v)
        qsort(v, n, sizeof *v, by_value);
    for (int i = 0; i < 3; i++) {
        fputs("<td>", f);
        const double x = v && n > 0 ? unit * v[i == 0 ? 0 : i == 1 ? n / 2 : n - 1] : NAN;
        if (isfinite(x))
            fprintf(f, format, x);
        else
            fputs("–", f);
        fputs("</td>", f);
    }
    free(v);
}

static void write_coverage(FILE *f, const json_t *layers)
{
    size_t i;
    const json_t *layer;
    fputs("<div class=\"scroll\"><table><thead><tr><th class=\"name\">layer</th><th>fewest tokens</th><th>median</th>"
          "<th>most</th><th>least of gate, up</th><th>median</th><th>most</th><th>of down</th><th>median</th>"
          "<th>most</th><th>starved</th></tr></thead>\n<tbody>",
          f);
    json_array_foreach(layers, i, layer)
    {
        const json_t *starved = json_object_get(layer, "starved");
        fputs("<tr><td class=\"name\">", f);
        print_integer(f, report_number(layer, "layer"));
        fputs("</td>", f);
        write_spread(f, json_object_get(layer, "tokens"), 1, "%.0f");
        write_spread(f, json_object_get(layer, "gate_up_energy"), 100, "%.1f%%");
        write_spread(f, json_object_get(layer, "down_energy"), 100, "%.1f%%");
        fputs("<td>", f);
        for (size_t e = 0; e < json_array_size(starved); e++) {
            fputs(e ? ", " : "", f);
            print_integer(f, element(starved, e));
        }
        if (json_array_size(starved) == 0)
            fputs("none", f);
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Share of the bytes with B's of `than` that one B saves. */
static void write_saving(FILE *f, const json_t *row, const char *than)
{
    const double saved = 1 - report_number(row, "b_per_layer") / report_number(row, than);
    fputs("<td>", f);
    report_bytes(f, report_number(row, than));
    fputs("</td><td>", f);
    if (isfinite(saved))
        fprintf(f, "%.1f%%", 100 * saved);
    else
        fputs("–", f);
    fputs("</td>", f);
}

static void write_sharing(FILE *f, const json_t *sharing)
{
    size_t i;
    const json_t *row;
    if (!sharing || !(report_number(sharing, "rank") > 0))
        return;
    fprintf(
        f,
        "<h2>One B for all experts</h2><p>Bytes of the correction of all gates and ups at rank %.0f, if each layer has "
        "one B, a B for every gate and up of an expert together, or a B for every matrix.</p>\n",
        report_number(sharing, "rank"));
    fputs("<div class=\"scroll\"><table><thead><tr><th class=\"name\">experts</th><th>one B</th><th>a B a pair</th>"
          "<th>saved</th><th>a B a matrix</th><th>saved</th></tr></thead>\n<tbody>",
          f);
    json_array_foreach(json_object_get(sharing, "bytes"), i, row)
    {
        fputs("<tr><td class=\"name\">", f);
        report_text(f, json_string_value(json_object_get(row, "experts")));
        fputs("</td><td>", f);
        report_bytes(f, report_number(row, "b_per_layer"));
        fputs("</td>", f);
        write_saving(f, row, "b_per_pair");
        write_saving(f, row, "b_per_matrix");
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

void report_experts(FILE *f, const struct report_data *d)
{
    const json_t *layers = json_object_get(d->manifest, "experts");
    static const struct map use = {"tokens", "share of the choices that fell on each expert", 1};
    static const struct map gate_up = {"gate_up_energy", "captured energy of each expert’s gate and up", 0};
    static const struct map down = {"down_energy", "captured energy of each expert’s down", 0};
    if (json_array_size(layers) == 0)
        return;
    fputs("<h2>Experts</h2><p>Share of a layer’s choices that fell on each expert while the calibration text ran. An "
          "outlined one is starved: it saw fewer tokens than its correction has dimensions, and leans on the layer’s "
          "statistics.</p>\n",
          f);
    write_map(f, &use, layers);
    if (d->factor_bytes > 0) {
        fputs(
            "<h2>Captured energy of experts</h2><p>Share of the error’s output energy that the correction removes, by "
            "expert: of gate and up, which share one B, then of down, which has its own.</p>\n",
            f);
        write_map(f, &gate_up, layers);
        write_map(f, &down, layers);
    }
    fputs("<h2>Coverage</h2><p>Tokens that chose an expert, and what its correction captures.</p>\n", f);
    write_coverage(f, layers);
    write_sharing(f, json_object_get(d->manifest, "sharing"));
}
