/* SPDX-License-Identifier: Apache-2.0
 * Cores: see cores.h. */
#include "base/cores.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

void cores_add(struct cores *cores, int core)
{
    cores->bits[core / 64] |= (uint64_t)1 << core % 64;
}

int cores_have(const struct cores *cores, int core)
{
    return cores->bits[core / 64] >> core % 64 & 1;
}

/* A cpu_set_t ends at 1024 cores, and Linux refuses a set that is smaller than its own. */
void cores_own(struct cores *cores)
{
    union {
        cpu_set_t first;
        unsigned char all[MOST_CORES / 8];
    } set;
    memset(cores, 0, sizeof *cores);
    memset(&set, 0, sizeof set);
    if (sched_getaffinity(0, sizeof set, &set.first) == 0)
        for (int c = 0; c < MOST_CORES; c++)
            if (CPU_ISSET_S((size_t)c, sizeof set, &set.first))
                cores_add(cores, c);
    if (cores_count(cores) == 0)
        cores_add(cores, 0);
}

int cores_count(const struct cores *cores)
{
    int n = 0;
    for (int c = 0; c < MOST_CORES; c++)
        n += cores_have(cores, c);
    return n;
}

void cores_list(const struct cores *cores, char *text, size_t n)
{
    size_t used = 0;
    text[0] = 0;
    for (int c = 0; c < MOST_CORES; c++) {
        if (!cores_have(cores, c))
            continue;
        int last = c;
        while (last + 1 < MOST_CORES && cores_have(cores, last + 1))
            last++;
        if (used < n)
            used += (size_t)snprintf(text + used, n - used, "%s%d", used ? "," : "", c);
        if (last > c && used < n)
            used += (size_t)snprintf(text + used, n - used, "-%d", last);
        c = last;
    }
}

struct core_share cores_share(const struct cores *all, int n, int which)
{
    struct core_share share = {.n = cores_count(&all[which])};
    double part = 0;
    for (int p = 0; p < n; p++) {
        int meets = 0;
        for (size_t i = 0; i < sizeof all[p].bits / sizeof all[p].bits[0]; i++)
            meets |= (all[p].bits[i] & all[which].bits[i]) != 0;
        share.sharers += meets;
    }
    for (int c = 0; c < MOST_CORES; c++) {
        int k = 0;
        for (int p = 0; p < n && cores_have(&all[which], c); p++)
            k += cores_have(&all[p], c);
        part += k > 0 ? 1.0 / k : 0;
    }
    const double rounding = 1e-9; /* three thirds may sum to less than one */
    share.starved = part + rounding < 1;
    share.threads = share.starved ? 1 : (int)(part + rounding);
    return share;
}
