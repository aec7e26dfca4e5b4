/* SPDX-License-Identifier: Apache-2.0
 * What `calibrate`, `plan` and `solve` are all asked: which settings, of which model.
 */
#ifndef GLOWQ_LAUNCH_CALIBRATION_H
#define GLOWQ_LAUNCH_CALIBRATION_H

#include "calib/calibrate.h"
#include "launch/commands.h"
#include "launch/source.h"

#include <stdio.h>

/* Rows of a table: what decides the result, but for the text. */
#define OPTIONS_CALIBRATION                                                                                            \
    OPTIONS_QUANTIZATION, OPTIONS_EXPERTS,                                                                             \
        OPT_CHOICE("expert-refit", 0, "own|layer", "own",                                                              \
                   "the statistics that an expert's factors are fitted to: its own, shrunk to the layer's, or the "    \
                   "layer's"),                                                                                         \
        OPT_CHOICE("expert-traffic", 0, "auto|weights|tokens", "auto",                                                 \
                   "what goes from rank to rank when the model runs: experts' weights to the tokens or tokens to "     \
                   "their experts, which are then held by one rank each; auto: what is less, unless only the other "   \
                   "fits. The result is the same"),                                                                    \
        OPT_HEADING("Statistics:"),                                                                                    \
        OPT_INT("samples", 'n', "N", "64", 1, 1 << 24,                                                                 \
                "windows of text, drawn without "                                                                      \
                "overlap"),                                                                                            \
        OPT_INT("seq-len", 'l', "L", "0", 0, 1 << 24,                                                                  \
                "tokens per window, BOS included; 0: 2048, or all that a model of fewer takes"),                       \
        OPT_INT("seed", 0, "N", "0", 0, 9007199254740992.0, "seed of windows, sketches and synthetic weights"),        \
        OPTIONS_SOLVER

/* Its parts that don't depend on what is observed. */
#define OPTIONS_QUANTIZATION                                                                                           \
    OPT_HEADING("Quantization and correction:"), OPT_CHOICE("bits", 'b', "2|3|4|8", "4", "bits per weight"),           \
        OPT_INT("group-size", 'g', "N", "128", 0, 1 << 20,                                                             \
                "columns that share a scale and a zero point; 0: a whole row"),                                        \
        OPT_INT("rank", 'r', "R", "64", 0, 1 << 16, "rank of the correction of every group; 0: plain quantization"),   \
        OPT_CHOICE("factor-dtype", 0, "bf16|f16", "bf16", "number format of the factors A and B"),                     \
        OPT_CHOICE("sharing", 0, "group|module", "group",                                                              \
                   "one B for all modules of a group, or one for each: the control of what sharing costs")
#define OPTIONS_EXPERTS                                                                                                \
    OPT_HEADING("Mixtures of experts:"),                                                                               \
        OPT_INT("expert-rank", 0, "R", "-1", -1, 1 << 16,                                                              \
                "rank in layers with experts; -1: the largest up to --rank that costs no more than 1/4 bit per "       \
                "weight"),                                                                                             \
        OPT_CHOICE("expert-weights", 0, "tokens|gates|none", "tokens",                                                 \
                   "what makes an expert's error count: the share of tokens that chose it, their squared weights, "    \
                   "nothing")
#define OPTIONS_SOLVER                                                                                                 \
    OPT_HEADING("Solver:"),                                                                                            \
        OPT_CHOICE("solver", 0, "krylov|qr-rsvd", "krylov",                                                            \
                   "block Krylov on E S E^T, or the QR-reduced randomized SVD of the GlowQ paper"),                    \
        OPT_CHOICE("damp", 0, "diag|median|trace", "diag", "what --alpha shrinks the statistics towards"),             \
        OPT_REAL("alpha", 0, "0.05", 0, 1, "share of --damp in the statistics"),                                       \
        OPT_REAL("stop", 0, "0.005", 0, 1, "stop when a step gains less than this share of the energy left"),          \
        OPT_INT("max-steps", 0, "N", "6", 1, 64, "krylov: most blocks after the first"),                               \
        OPT_INT("oversample", 0, "P", "10", 0, 1024, "columns beyond the rank"),                                       \
        OPT_INT("power", 0, "N", "-1", -1, 64, "qr-rsvd: power iterations; -1: until --stop holds"),                   \
        OPT_CHOICE("qr", 0, "gram|householder", "gram",                                                                \
                   "qr-rsvd: QR of E and of the sketches by Cholesky factors where that is safe, or always by "        \
                   "Householder"),                                                                                     \
        OPT_FLAG("exact-energy", 0, "compute the error's total energy instead of estimating it")

#define OPTIONS_GRID                                                                                                   \
    OPT_HEADING("Ranks:"),                                                                                             \
        OPT_STRING("grid", 0, "SxR",                                                                                   \
                   "S stages, among which layers are dealt out, of R ranks each, which share what is inside a layer; " \
                   "unless said, a stage for each host where all have as many ranks"),                                 \
        OPT_INT("waves", 0, "N", "0", 0, 1 << 20,                                                                      \
                "parts that the layers are worked on in, one after another; 0: so many that a stage has one layer at " \
                "a time, which takes least memory")

/* Of the machine: after OPTIONS_COMPUTE. */
#define OPTIONS_MEMORY                                                                                                 \
    OPT_STRING("memory", 0, "SIZE",                                                                                    \
               "what a rank may take of its device's memory: 5G, 800M (a bare number is in GiB); unless said, what "   \
               "is free. Statistics that don't fit beside the rest are spilled, what doesn't fit even then is "        \
               "refused"),                                                                                             \
        OPT_STRING("scratch", 0, "DIR",                                                                                \
                   "folder for statistics that are spilled (a GPU's go to the host's memory); unless said, that of "   \
                   "the result")

/* All that the options of OPTIONS_CALIBRATION and of source.h say; no texts, out or command. */
struct calibrate_options calibration_options(const struct options *options);
/* What its three parts and source.h say, and nothing of what is observed. solve.seed: 0. */
struct calibrate_options solving_options(const struct options *options);
/* OPTIONS_GRID: what is wrong with it as long as nobody knows how many ranks there are; and into c. */
int grid_check(struct options *options);
void grid_options(const struct options *options, struct calibrate_options *c);
/* OPTIONS_MEMORY likewise. */
int memory_option_check(struct options *options);
void memory_options(const struct options *options, struct calibrate_options *c);
/* "glowq calibrate --model ..." (name: calibrate) as a shell would take it: what was said of the command's own options, and not only by
 * default. leave: names of options to leave out, ending with NULL; or NULL. Caller frees; NULL: out of memory. */
char *calibration_command(const struct options *options, const char *name, const char *const *leave);
/* A word as a shell would take it. */
void shell_word(FILE *f, const char *word);
/* Calibrates, or solves again, as c says on the backend that the options name, and prints what came of it, as text or JSON.
 * c->command is filled in here. Collective. */
int calibration_run(struct comm *comm, const struct options *options, struct calibrate_options *c);

#endif
