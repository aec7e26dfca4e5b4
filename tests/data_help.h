/* SPDX-License-Identifier: Apache-2.0
 * Published models, texts and tokenizers, which aren't part of the project: GLOWQ_DATA names the folder that holds them. A run that
 * needs them ends with 77 where it isn't set. */
#ifndef GLOWQ_TESTS_DATA_HELP_H
#define GLOWQ_TESTS_DATA_HELP_H

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* Name in that folder; 0 and the reason printed where there is none. */
static inline int data_path(char out[PATH_MAX], const char *name)
{
    const char *data = getenv("GLOWQ_DATA");
    if (!data || !*data) {
        printf("skipped: GLOWQ_DATA (a folder of published models) isn't set\n");
        return 0;
    }
    snprintf(out, PATH_MAX, "%s/%s", data, name);
    return 1;
}

#endif
