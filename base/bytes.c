/* SPDX-License-Identifier: Apache-2.0
 * Bytes: see bytes.h. */
#include "base/bytes.h"

#include <stdio.h>

char *format_bytes(double bytes, char *out, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    const int last = sizeof units / sizeof units[0] - 1;
    double v = bytes;
    int u = 0;
    while (v >= 999.5 && u < last) { /* three digits */
        v /= 1024;
        u++;
    }
    snprintf(out, size, u == 0 || v >= 99.95 ? "%.0f %s" : "%.1f %s", v, units[u]);
    return out;
}
