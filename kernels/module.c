/* SPDX-License-Identifier: Apache-2.0
 * Modules: see module.h. */
#include "kernels/module.h"

#include "base/err.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Folder number i where a module may stand; 0: no such. */
static int folder(int i, char *dir, size_t n)
{
    static const char *const beside[] = {"", "/../lib/glowq", "/.."}; /* the last: test programs, a folder below */
    const char *named = getenv("GLOWQ_MODULE_DIR");
    char self[PATH_MAX];
    if (named) {
        snprintf(dir, n, "%s", named);
        return i == 0;
    }
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (i >= (int)(sizeof beside / sizeof beside[0]) || length <= 0)
        return 0;
    self[length] = 0;
    *strrchr(self, '/') = 0;
    snprintf(dir, n, "%s%s", self, beside[i]);
    return 1;
}

static const struct backend_module *open_at(const char *path, char *why, size_t n_why)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, n_why, "%s (CUDA's libraries have to be where the loader looks: LD_LIBRARY_PATH)", dlerror());
        return NULL;
    }
    /* POSIX: a function pointer is had through the address of one */
    const struct backend_module *(*entry)(void) = NULL;
    *(void **)&entry = dlsym(library, "glowq_module");
    const struct backend_module *module = entry ? entry() : NULL;
    if (!module || module->ops_bytes != sizeof(struct backend_ops)) {
        snprintf(why, n_why, "%s was built for another version of glowq", path);
        dlclose(library);
        return NULL;
    }
    return module;
}

const struct backend_module *module_load(const char *name, char *why, size_t n_why)
{
    static struct {
        const char *name, *file;
        const struct backend_module *loaded;
    } modules[] = {{"cuda", "libglowq_cuda.so", NULL}, {"cuda:sim", "libglowq_cuda_sim.so", NULL}};
    const size_t n_modules = sizeof modules / sizeof modules[0];
    char dir[PATH_MAX], path[PATH_MAX + 64];
    size_t m = 0;
    while (m < n_modules && strcmp(modules[m].name, name) != 0)
        m++;
    if (m == n_modules) {
        snprintf(why, n_why, "there is no module for it");
        return NULL;
    }
    snprintf(why, n_why, "this build has no %s (made where CMake finds nvcc 12 or newer)", modules[m].file);
    for (int i = 0; !modules[m].loaded && folder(i, dir, sizeof dir); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, modules[m].file);
        if (access(path, R_OK) == 0) {
            modules[m].loaded = open_at(path, why, n_why);
            break;
        }
    }
    return modules[m].loaded;
}
