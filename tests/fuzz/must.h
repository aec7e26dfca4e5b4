/* SPDX-License-Identifier: Apache-2.0
 * What the fuzz targets say instead of assert: what mustn't happen ends the process, as a sanitizer does. */
#ifndef GLOWQ_TESTS_FUZZ_MUST_H
#define GLOWQ_TESTS_FUZZ_MUST_H

#include <stdio.h>
#include <stdlib.h>

#define MUST(condition, ...)                                                                                           \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "\n%s:%d: ", __FILE__, __LINE__);                                                          \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
