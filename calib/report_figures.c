/* SPDX-License-Identifier: Apache-2.0
 * Drawings of the report, as inline SVG. Colours are the page's CSS variables, so they follow light and dark.
 */
#include "calib/report_private.h"

#include <math.h>
#include <stdlib.h>

/* ---- heat map: groups by layer, coloured by captured energy ------------------------------------------------------ */

/* Where v lies in the scale, 0..1, and how opaque that is drawn: never so faint that a cell looks missing. */
static double scale_position(const struct report_data *d, double v)
{
    return d->highest > d->lowest ? (v - d->lowest) / (d->highest - d->lowest) : 1;
}

static double opacity_at(double position)
{
    const double faintest = 0.10;
    return faintest + (1 - faintest) * position;
}

static void heat_cell(FILE *f, const struct report_data *d, const struct report_group *g, double x, double y, double w,
                      double h)
{
    const double text_needs = 40; /* width in which "45.3%" is readable */
    fprintf(f, "<g><title>layer %lld, ", (long long)g->layer);
    report_text(f, d->kinds[g->kind]);
    if (!isfinite(g->energy)) {
        fprintf(f, "</title><rect class=\"cell none\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/></g>\n", x,
                y, w, h);
        return;
    }
    double position = scale_position(d, g->energy);
    fprintf(f, ": %.2f%%", 100 * g->energy);
    if (g->energy_error > 0)
        fprintf(f, " ± %.2f%%", 100 * g->energy_error);
    fprintf(f,
            ", rank %.0f</title><rect class=\"cell\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
            "fill-opacity=\"%.3f\"/>",
            g->rank, x, y, w, h, opacity_at(position));
    if (w >= text_needs)
        fprintf(f, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\">%.1f</text>", position > 0.62 ? "on" : "off", x + w / 2,
                y + h / 2 + 4, 100 * g->energy);
    fputs("</g>\n", f);
}

static void heat_legend(FILE *f, const struct report_data *d, double x, double y)
{
    const int steps = 24;
    const double width = 7;
    fprintf(f, "<text class=\"axis end\" x=\"%.1f\" y=\"%.1f\">%.0f%%</text>", x - 8, y + 10, 100 * d->lowest);
    for (int i = 0; i < steps; i++)
        fprintf(f, "<rect class=\"cell\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"12\" fill-opacity=\"%.3f\"/>",
                x + i * width, y, width, opacity_at((double)i / (steps - 1)));
    fprintf(f, "<text class=\"axis start\" x=\"%.1f\" y=\"%.1f\">%.0f%%</text>\n", x + steps * width + 8, y + 10,
            100 * d->highest);
}

void report_heat_map(FILE *f, const struct report_data *d)
{
    const double left = 96, right = 920, gap = 2, h = 34;
    double w = (right - left) / (double)(d->n_layers > 0 ? d->n_layers : 1);
    if (w > 72)
        w = 72;
    const double bottom = d->n_kinds * (h + gap);
    const int64_t every = d->n_layers > 24 ? (d->n_layers > 60 ? 10 : 4) : 1; /* layer numbers that fit below */
    fprintf(f, "<svg viewBox=\"0 0 920 %.0f\" role=\"img\" aria-label=\"captured energy of every group\">\n",
            bottom + 62);
    for (int k = 0; k < d->n_kinds; k++) {
        fprintf(f, "<text class=\"axis end\" x=\"%.1f\" y=\"%.1f\">", left - 10, k * (h + gap) + h / 2 + 4);
        report_text(f, d->kinds[k]);
        fputs("</text>\n", f);
    }
    for (int64_t i = 0; i < d->n_groups; i++) {
        const struct report_group *g = &d->groups[i];
        heat_cell(f, d, g, left + (double)g->layer * w, g->kind * (h + gap), w > 6 ? w - gap : w, h);
    }
    for (int64_t l = 0; l < d->n_layers; l += every)
        fprintf(f, "<text class=\"axis mid\" x=\"%.1f\" y=\"%.1f\">%lld</text>\n",
                left + ((double)l + 0.5) * w - gap / 2, bottom + 16, (long long)l);
    fprintf(f, "<text class=\"axis end\" x=\"%.1f\" y=\"%.1f\">layer</text>\n", left - 10, bottom + 16);
    heat_legend(f, d, left + 40, bottom + 40);
    fputs("</svg>\n", f);
}

/* ---- elbow: what each further byte of correction buys ------------------------------------------------------------ */

static double worth(const struct report_group *g)
{
    return g->captured / g->factor_bytes;
}

static int by_worth(const void *a, const void *b)
{
    const struct report_group *const *x = a, *const *y = b;
    double p = worth(*x), q = worth(*y);
    if (p != q)
        return p < q ? 1 : -1;
    return *x < *y ? -1 : 1; /* equal ones in the manifest's order */
}

/* The corrected groups, best captured energy per byte first; caller frees. */
static const struct report_group **best_first(const struct report_data *d, int64_t *n)
{
    const struct report_group **list = calloc((size_t)d->n_groups + 1, sizeof *list);
    *n = 0;
    for (int64_t i = 0; list && i < d->n_groups; i++)
        if (d->groups[i].factor_bytes > 0 && d->groups[i].captured > 0)
            list[(*n)++] = &d->groups[i];
    if (list)
        qsort(list, (size_t)*n, sizeof *list, by_worth);
    return list;
}

void report_elbow(FILE *f, const struct report_data *d)
{
    const double x0 = 64, x1 = 900, y0 = 236, y1 = 16;
    int64_t n = 0, elbow = -1;
    const struct report_group **list = best_first(d, &n);
    double bytes = 0, energy = 0, total_bytes = 0, total = 0, farthest = 0, elbow_x = 0, elbow_y = 0, elbow_bytes = 0;
    if (!list || n < 3 || !(d->trace > 0)) { /* a curve needs points */
        fputs("<p class=\"note\">Fewer than three groups carry a correction: there is no curve to draw.</p>\n", f);
        free(list);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        total_bytes += list[i]->factor_bytes;
        total += list[i]->captured;
    }
    const double top = total / d->trace;
    fputs("<svg viewBox=\"0 0 920 282\" role=\"img\" aria-label=\"captured energy against bytes of correction\">\n", f);
    for (int i = 0; i <= 4; i++) {
        double y = y0 + (y1 - y0) * i / 4;
        fprintf(f,
                "<line class=\"grid\" x1=\"%.0f\" y1=\"%.1f\" x2=\"%.0f\" y2=\"%.1f\"/>"
                "<text class=\"axis end\" x=\"%.0f\" y=\"%.1f\">%.1f%%</text>\n",
                x0, y, x1, y, x0 - 8, y + 4, 100 * top * i / 4);
        fprintf(f, "<text class=\"axis mid\" x=\"%.1f\" y=\"%.0f\">", x0 + (x1 - x0) * i / 4, y0 + 20);
        report_bytes(f, total_bytes * i / 4);
        fputs("</text>\n", f);
    }
    fprintf(
        f,
        "<line class=\"chord\" x1=\"%.0f\" y1=\"%.0f\" x2=\"%.0f\" y2=\"%.0f\"/>\n<path class=\"curve\" d=\"M%.1f %.1f",
        x0, y0, x1, y1, x0, y0);
    for (int64_t i = 0; i < n; i++) {
        bytes += list[i]->factor_bytes;
        energy += list[i]->captured;
        double u = bytes / total_bytes, v = energy / total;
        fprintf(f, " L%.1f %.1f", x0 + (x1 - x0) * u, y0 + (y1 - y0) * v);
        if (v - u > farthest) { /* the distance to the chord is (v - u) / sqrt 2 */
            farthest = v - u;
            elbow = i;
            elbow_x = u;
            elbow_y = v;
            elbow_bytes = bytes;
        }
    }
    fputs("\"/>\n", f);
    if (elbow >= 0) {
        double x = x0 + (x1 - x0) * elbow_x, y = y0 + (y1 - y0) * elbow_y;
        fprintf(f,
                "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"/><text class=\"axis above %s\" x=\"%.1f\" "
                "y=\"%.1f\">"
                "elbow: %lld of %lld groups, ",
                x, y, elbow_x > 0.6 ? "end" : "start", elbow_x > 0.6 ? x - 12 : x + 12, y + 22, (long long)elbow + 1,
                (long long)n);
        report_bytes(f, elbow_bytes);
        fprintf(f, ", %.1f%% of what all capture</text>\n", 100 * elbow_y);
    }
    fprintf(
        f,
        "<text class=\"axis mid\" x=\"%.1f\" y=\"%.0f\">bytes of correction, groups that capture most per byte first"
        "</text>\n</svg>\n",
        (x0 + x1) / 2, y0 + 42);
    free(list);
}

/* ---- bars -------------------------------------------------------------------------------------------------------- */

void report_bar(FILE *f, const struct report_part *parts, int n, void (*print)(FILE *f, double value))
{
    const double width = 920;
    double total = 0, x = 0;
    for (int i = 0; i < n; i++)
        total += parts[i].value > 0 ? parts[i].value : 0;
    if (!(total > 0))
        return;
    fputs("<svg viewBox=\"0 0 920 30\" role=\"img\" aria-label=\"shares\">", f);
    for (int i = 0; i < n; i++) {
        double w = parts[i].value > 0 ? width * parts[i].value / total : 0;
        if (w <= 0)
            continue;
        fprintf(f, "<rect class=\"%s\" x=\"%.2f\" y=\"0\" width=\"%.2f\" height=\"30\"><title>", parts[i].css_class, x,
                w > 2 ? w - 1.5 : w);
        report_text(f, parts[i].label);
        fprintf(f, ", %.1f%%</title></rect>", 100 * parts[i].value / total);
        x += w;
    }
    fputs("</svg>\n<ul class=\"legend\">", f);
    for (int i = 0; i < n; i++) {
        if (!(parts[i].value > 0))
            continue;
        fprintf(f, "<li><svg viewBox=\"0 0 10 10\"><rect class=\"%s\" width=\"10\" height=\"10\" rx=\"2\"/></svg>",
                parts[i].css_class);
        report_text(f, parts[i].label);
        fputs(" <b>", f);
        print(f, parts[i].value);
        fprintf(f, "</b> <span>%.1f%%</span></li>\n", 100 * parts[i].value / total);
    }
    fputs("</ul>\n", f);
}
