/* SPDX-License-Identifier: Apache-2.0
 * Modules: backends that this program loads when they are asked for, so that the same installation starts where their
 * libraries are missing. "cuda" is libglowq_cuda.so, "cuda:sim" (its kernels, compiled for the host) libglowq_cuda_sim.so; they
 * stand beside the program or in ../lib/glowq from it; where GLOWQ_MODULE_DIR is set, there alone.
 * A module exports one function, glowq_module, and uses base/ from the program that loads it (linked with -rdynamic).
 */
#ifndef GLOWQ_KERNELS_MODULE_H
#define GLOWQ_KERNELS_MODULE_H

#include "kernels/kernels.h"

#include <stddef.h>

struct backend_module {
    size_t ops_bytes; /* sizeof(struct backend_ops) that it was built with */
    const struct backend_ops *ops;
    /* Devices that answer; 0: why says what is missing. */
    int (*count)(char *why, size_t n_why);
    /* Of device index: "NVIDIA H100 80GB HBM3", "0000:17:00.0". */
    int (*identify)(int index, char *name, size_t n_name, char *pci, size_t n_pci);
    /* Of its libraries, as loaded: "13.0 (driver 13.0), cuBLAS 13.0.2". */
    void (*version)(char *text, size_t n);
};

const struct backend_module *glowq_module(void);

/* The module of "cuda" or "cuda:sim"; NULL: why says where it was looked for and what dlopen said. Stays loaded. */
const struct backend_module *module_load(const char *name, char *why, size_t n_why);

#endif
