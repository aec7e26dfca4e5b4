/* SPDX-License-Identifier: Apache-2.0
 * What report.c (the page), report_experts.c (its sections about experts) and report_figures.c (its drawings) share. Nobody else
 * includes this.
 */
#ifndef GLOWQ_CALIB_REPORT_PRIVATE_H
#define GLOWQ_CALIB_REPORT_PRIVATE_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

enum { REPORT_KINDS = 16 }; /* kinds of groups: qkv, o, gate_up, down, ... */

/* One group of one layer, as the manifest has it. NAN where it says nothing. */
struct report_group {
    int64_t layer;
    int kind; /* index into kinds */
    double rank, steps, energy, energy_error, trace, captured, error_norm2;
    double weight_bytes, quantized_bytes, factor_bytes;
};

struct report_data {
    const json_t *manifest, *run;
    struct report_group *groups;
    int64_t n_groups;
    int64_t n_layers; /* highest layer + 1 */
    const char *kinds[REPORT_KINDS];
    int n_kinds;
    /* over all groups */
    double trace, captured, weight_bytes, quantized_bytes, factor_bytes;
    double lowest, highest; /* energy, for the heat map's scale */
};

/* Text with what HTML would take for markup escaped; NULL prints nothing. */
void report_text(FILE *f, const char *text);
/* "1.5 MiB" (base/bytes.h), "–" where it isn't known. */
void report_bytes(FILE *f, double bytes);
/* "42 ms", "3.1 s", "12 min 5 s", "3 h 20 min". */
void report_seconds(FILE *f, double s);

/* A member of an object; NAN where it isn't there or no number. */
double report_number(const json_t *object, const char *key);

/* The sections about experts, nothing where the manifest has none. */
void report_experts(FILE *f, const struct report_data *d);

/* Drawings, each one <svg> or a few elements around one. */
void report_heat_map(FILE *f, const struct report_data *d);
void report_elbow(FILE *f, const struct report_data *d);
/* A bar of n parts side by side and a legend below it. NULL labels are left out; parts <= 0 too. */
struct report_part {
    const char *label;
    double value;
    const char *css_class;
};
void report_bar(FILE *f, const struct report_part *parts, int n, void (*print)(FILE *f, double value));

#endif
