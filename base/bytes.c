/* SPDX-License-Identifier: Apache-2.0
 * Bytes: see bytes.h. */
#include "base/bytes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

size_t parse_bytes(const char *text)
{
    static const char units[] = "KMGT";
    char *end = NULL;
    double size = strtod(text, &end);
    const char *unit = *end ? strchr(units, *end) : strchr(units, 'G');
    if (end == text || !unit || (*end && end[1]) || !(size > 0))
        return 0;
    size = ldexp(size, 10 * (int)(unit - units + 1));
    return size >= 1 && size < 0x1p62 ? (size_t)size : 0;
}
