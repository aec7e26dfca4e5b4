/* SPDX-License-Identifier: Apache-2.0
 * The subcommands, one file each (cmd_NAME.c), and what they share. Data goes to stdout from rank 0 alone, talk to
 * stderr through base/log.h.
 */
#ifndef GLOWQ_LAUNCH_COMMANDS_H
#define GLOWQ_LAUNCH_COMMANDS_H

#include "base/bytes.h"
#include "base/cores.h"
#include "comm/comm.h"
#include "launch/options.h"

#include <jansson.h>
#include <stddef.h>

extern const struct command command_calibrate, command_eval, command_generate, command_tokenize, command_inspect,
    command_verify, command_bench, command_serve, command_bench_serve, command_doctor, command_solve, command_status,
    command_plan, command_select;

enum { JSON_SCHEMA_VERSION = 1 }; /* of every object that --json prints; raised when a field changes its meaning */

/* Tables of commands that compute begin their last group with these. */
#define OPTIONS_COMPUTE                                                                                                \
    OPT_HEADING("Machine:"),                                                                                           \
        OPT_CHOICE("device", 0, "auto|cpu|cpu:ref|cpu:check|cuda|cuda:N|cuda:sim", "auto",                             \
                   "where to compute; auto: cuda where every rank finds a GPU, else cpu; cuda: each rank of a host "   \
                   "takes the next GPU; cuda:N: all take GPU N; cpu:ref is the slow reference, cpu:check finds "       \
                   "memory errors, cuda:sim runs the GPU's code on the CPU"),                                          \
        OPT_CHOICE("dtype", 0, "auto|f32|bf16", "auto",                                                                \
                   "numbers that products read; auto: bf16 on a GPU, f32 on the CPU, which has no other"),             \
        OPT_INT("threads", 't', "N", "0", 0, 4096,                                                                     \
                "threads per rank; 0: its share of the cores that this host's ranks may run on")

/* How much a server takes on: of `serve`, and of `plan --serve`. */
#define OPTIONS_CAPACITY                                                                                               \
    OPT_INT("max-sequences", 0, "N", "64", 1, 4096, "requests that run at once"),                                      \
        OPT_INT("max-batch-tokens", 0, "N", "512", 1, 65536, "tokens of a step, prompts and texts together"),          \
        OPT_INT("max-length", 0, "N", "0", 0, 1 << 24, "tokens of a prompt and its text; 0: what the model takes"),    \
        OPT_INT("kv-tokens", 0, "N", "0", 0, 1LL << 32, "tokens of the KV cache; 0: as --memory-fraction says"),       \
        OPT_REAL("memory-fraction", 0, "0.8", 0.01, 1,                                                                 \
                 "share of the device's free memory for weights, activations and KV cache together; the cache takes "  \
                 "what is left, up to --max-sequences of --max-length")

/* Opens the backend that --device, --dtype and --threads ask for, makes it comm->be, and lets NCCL carry its mats if it can
 * (comm_use_nccl). Says who computes where. What no rank can open is explained once, by rank 0. Collective. */
int open_backend(struct comm *comm, const struct options *options, struct backend *be);
/* What this rank has of its host's cores: share->threads are those of --threads 0. Collective. */
int find_cores(struct comm *comm, struct core_share *share);
/* The files' bytes one after another, 0-terminated; rank 0 reads, every rank gets them. Caller frees. Collective. */
int read_texts(struct comm *comm, const char *const *paths, int n_paths, char **text, size_t *n);
/* All of standard input, 0-terminated; caller frees. Not collective. */
int read_stdin(char **text, size_t *n);

/* Output: whatever stdout can't take is remembered and reported by out_close, as ERR_IO; a reader that closed its end
 * of a pipe has had enough and is no error. Not collective. */
void out_write(const void *data, size_t n);
void out_print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void out_flush(void);
/* Prints the object, indented, with a newline, and frees it. ERR_NOMEM when it is NULL. */
int out_json(json_t *object);
int out_close(void);
/* A JSON number, or null for NaN and infinity, which JSON doesn't have. */
json_t *json_number(double v);

/* Versions of this program and of everything that it is built on. */
int print_versions(int as_json);
/* See environment.c: may re-execute the program; call first in main. */
void environment_fix(char **argv);

#endif
