/* SPDX-License-Identifier: Apache-2.0
 * libnccl.so.2 at run time: see nccl_library.h. */
#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char file[] = "libnccl.so.2";

void nccl_version_text(int version, char *text, size_t n)
{
    snprintf(text, n, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

/* All entries by name; the first missing one in why. */
static int resolve(void *handle, struct nccl_library *library, char *why, size_t n_why)
{
    const struct {
        const char *name;
        void **entry; /* POSIX: a function pointer is had through the address of one */
    } symbols[] = {
        {"ncclGetVersion", (void **)&library->get_version},
        {"ncclGetUniqueId", (void **)&library->get_unique_id},
        {"ncclCommInitRankConfig", (void **)&library->comm_init_rank_config},
        {"ncclCommFinalize", (void **)&library->comm_finalize},
        {"ncclCommDestroy", (void **)&library->comm_destroy},
        {"ncclCommAbort", (void **)&library->comm_abort},
        {"ncclGetErrorString", (void **)&library->get_error_string},
        {"ncclGetLastError", (void **)&library->get_last_error},
        {"ncclCommGetAsyncError", (void **)&library->comm_get_async_error},
        {"ncclBroadcast", (void **)&library->broadcast},
        {"ncclAllReduce", (void **)&library->all_reduce},
        {"ncclReduce", (void **)&library->reduce},
        {"ncclAllGather", (void **)&library->all_gather},
        {"ncclSend", (void **)&library->send},
        {"ncclRecv", (void **)&library->recv},
        {"ncclGroupStart", (void **)&library->group_start},
        {"ncclGroupEnd", (void **)&library->group_end},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        if (!(*symbols[i].entry = dlsym(handle, symbols[i].name))) {
            snprintf(why, n_why, "%s has no %s: NCCL 2.19 or newer is needed", library->path, symbols[i].name);
            return 0;
        }
    }
    return 1;
}

/* Loads the file at path; a name without '/' is looked for by the loader. */
static int open_at(const char *path, struct nccl_library *library, char *why, size_t n_why)
{
    char version[16];
    Dl_info info;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(why, n_why, "%s", dlerror());
        return 0;
    }
    snprintf(library->path, sizeof library->path, "%s", path);
    if (!resolve(handle, library, why, n_why))
        goto out;
    if (dladdr(*(void **)&library->get_version, &info) && info.dli_fname)
        snprintf(library->path, sizeof library->path, "%s", info.dli_fname);
    if (library->get_version(&library->version) == NCCL_SUCCESS && library->version >= NCCL_LEAST)
        return 1;
    nccl_version_text(library->version, version, sizeof version);
    snprintf(why, n_why, "%s is NCCL %s: 2.19 or newer is needed", library->path, version);
out:
    dlclose(handle);
    return 0;
}

/* The first of the folders root/below (a pattern) that holds one which can be used. */
static int open_below(const char *root, const char *below, struct nccl_library *library, char *why, size_t n_why)
{
    char pattern[PATH_MAX];
    glob_t found = {0};
    int opened = 0;
    snprintf(pattern, sizeof pattern, "%s%s/%s", root, below, file);
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc && !opened; i++)
            opened = open_at(found.gl_pathv[i], library, why, n_why);
    globfree(&found);
    return opened;
}

static int search(struct nccl_library *library, char *why, size_t n_why)
{
    static const struct {
        const char *variable, *below; /* variable NULL: below is the whole path */
    } places[] = {
        {"CUDA_HOME", "/lib*"},
        {"CUDA_PATH", "/lib*"},
        {NULL, "/usr/local/cuda/lib*"},
        {"VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/nccl/lib"},
        {"CONDA_PREFIX", "/lib/python3*/site-packages/nvidia/nccl/lib"},
        {"HOME", "/.local/lib/python3*/site-packages/nvidia/nccl/lib"},
        {NULL, "/usr/local/lib/python3*/*-packages/nvidia/nccl/lib"},
        {NULL, "/usr/lib/python3/dist-packages/nvidia/nccl/lib"},
    };
    char program[PATH_MAX] = "";
    if (open_at(file, library, why, n_why))
        return 1;
    if (readlink("/proc/self/exe", program, sizeof program - 1) > 0) {
        *strrchr(program, '/') = 0;
        if (open_below(program, "", library, why, n_why) || open_below(program, "/../lib/glowq", library, why, n_why))
            return 1;
    }
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const char *root = places[i].variable ? getenv(places[i].variable) : "";
        if (root && (root[0] || !places[i].variable) && open_below(root, places[i].below, library, why, n_why))
            return 1;
    }
    return 0;
}

const struct nccl_library *nccl_library(char *why, size_t n_why)
{
    static struct nccl_library library;
    static int is_open;
    const char *named = getenv("GLOWQ_NCCL");
    if (is_open)
        return &library;
    if (named && strcmp(named, "off") == 0)
        snprintf(why, n_why, "GLOWQ_NCCL is off");
    else if (named && named[0])
        is_open = open_at(named, &library, why, n_why);
    else
        is_open = search(&library, why, n_why);
    return is_open ? &library : NULL;
}
