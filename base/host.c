/* SPDX-License-Identifier: Apache-2.0
 * Host: see host.h. */
#include "base/host.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Where a version of control groups keeps its folders, and what its files are called. */
struct control {
    const char *controllers; /* as a line of /proc/self/cgroup names them; version 2: none */
    const char *folder, *limit, *used, *idle;
};

static const struct control controls[] = {
    {"", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "},
    {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "},
};

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

static int64_t group_number(const char *folder, const char *file, const char *name)
{
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s", folder, file) < (int)sizeof path ? number_in(path, name) : -1;
}

/* One group's word. What it uses counts the page cache, of which the kernel gives up what hasn't been used lately before it refuses
 * anything. */
static void heed(const struct control *c, const char *folder, struct host_memory *memory)
{
    const int64_t limit = group_number(folder, c->limit, ""); /* "max" is no number */
    const int64_t used = group_number(folder, c->used, "");
    const int64_t idle = group_number(folder, "memory.stat", c->idle);
    if (limit < 0 || used < 0)
        return;
    const int64_t left = limit - used + (idle > 0 ? idle : 0);
    memory->total = least(memory->total, limit);
    memory->available = least(memory->available, left > 0 ? left : 0);
}

/* A group is bound by those that it is in: all of them, from the process's own up to what is mounted. A container may see its own
 * group mounted in place of all of them: the path doesn't exist there then, and the top is what counts. */
static void heed_all(const struct control *c, const char *root, const char *group, struct host_memory *memory)
{
    char folder[PATH_MAX];
    const int top = snprintf(folder, sizeof folder, "%s%s", root, c->folder);
    if (snprintf(folder, sizeof folder, "%s%s%s", root, c->folder, group) >= (int)sizeof folder)
        return;
    for (char *end = strrchr(folder, '/'); end && end >= folder + top; end = strrchr(folder, '/')) {
        heed(c, folder, memory);
        *end = 0;
    }
    heed(c, folder, memory);
}

/* Is name one of a list's, "cpu,memory"? An empty list is that of version 2. */
static int is_in(const char *name, const char *list)
{
    const size_t n = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, n) == 0 && (at[n] == 0 || at[n] == ','))
            return 1;
    }
    return 0;
}

struct host_memory host_memory(const char *root)
{
    char path[PATH_MAX], line[PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    const int64_t total = number_in(path, "MemTotal:"), available = number_in(path, "MemAvailable:");
    struct host_memory memory = {total < 0 ? -1 : total * 1024, available < 0 ? -1 : available * 1024};
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) { /* "4:cpu,memory:/slurm/job_7" */
        char *list = strchr(line, ':');
        char *group = list ? strchr(list + 1, ':') : NULL;
        if (!group)
            continue;
        *list++ = *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        for (size_t i = 0; i < sizeof controls / sizeof *controls; i++)
            if (is_in(controls[i].controllers, list))
                heed_all(&controls[i], root, group, &memory);
    }
    if (f)
        fclose(f);
    return memory;
}
