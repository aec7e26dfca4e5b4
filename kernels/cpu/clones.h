/* SPDX-License-Identifier: Apache-2.0
 * Loops compiled three times, for AVX-512, AVX2 and any processor, and chosen when the program starts. Only for loops whose
 * operations are element by element, each exact or correctly rounded: all clones then give the same bits, and GLOWQ_DISABLE has
 * nothing to switch off. Not under AddressSanitizer, which isn't ready yet when the choice is made. */
#ifndef GLOWQ_KERNELS_CPU_CLONES_H
#define GLOWQ_KERNELS_CPU_CLONES_H

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTOR_CLONES
#endif

#endif
