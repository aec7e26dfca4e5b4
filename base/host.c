/* SPDX-License-Identifier: Apache-2.0
 * Host: see host.h. */
#include "base/host.h"

#include <stdio.h>
#include <string.h>

/* The number behind a name at the beginning of a line, -1: not there. The kernel makes such texts while they are read: no size is
 * known beforehand. */
static int64_t number_in(const char *path, const char *name)
{
    char line[256];
    long long found = -1;
    const size_t n = strlen(name);
    FILE *f = fopen(path, "r");
    while (f && found < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, name, n) == 0 && sscanf(line + n, "%lld", &found) != 1)
            found = -1;
    if (f)
        fclose(f);
    return (int64_t)found;
}

/* Of the two that are known, the smaller. */
static int64_t least(int64_t a, int64_t b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

static int64_t meminfo(const char *name)
{
    const int64_t kib = number_in("/proc/meminfo", name);
    return kib < 0 ? -1 : kib * 1024;
}

int64_t host_memory_total(void)
{
    return least(meminfo("MemTotal:"), number_in("/sys/fs/cgroup/memory.max", ""));
}

/* memory.current counts the page cache, of which the kernel gives up what hasn't been used lately before it refuses anything. */
static int64_t group_available(void)
{
    const int64_t limit = number_in("/sys/fs/cgroup/memory.max", ""); /* "max" is no number */
    const int64_t used = number_in("/sys/fs/cgroup/memory.current", "");
    const int64_t idle = number_in("/sys/fs/cgroup/memory.stat", "inactive_file ");
    if (limit < 0 || used < 0)
        return -1;
    const int64_t left = limit - used + (idle > 0 ? idle : 0);
    return left > 0 ? left : 0;
}

int64_t host_memory_available(void)
{
    return least(meminfo("MemAvailable:"), group_available());
}
