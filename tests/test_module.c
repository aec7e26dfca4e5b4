/* SPDX-License-Identifier: Apache-2.0
 * What --device cuda says where it can't be had: no module, a module of another version, something that is no module, no device.
 * Each in a child, since a module stays loaded. */
#include "base/err.h"
#include "kernels/module.h"
#include "tests/child_help.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char dir[] = "/tmp/glowq_module.XXXXXX";

/* The error of opening device with modules sought in folder alone; its message in text. */
static int open_in(const char *folder, const char *device, char *text, size_t n_text)
{
    struct child child;
    if (child_begins(&child)) {
        struct backend be;
        setenv("GLOWQ_MODULE_DIR", folder, 1);
        err_quiet(1);
        const int err = backend_open(&be, device, 1);
        if (write(STDERR_FILENO, err_last(), strlen(err_last())) < 0)
            _exit(99);
        backend_close(&be);
        _exit(-err);
    }
    const int status = child_ends(&child, text, n_text);
    assert_true(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

static void test_missing_module_is_named(void **unused)
{
    char text[2048];
    (void)unused;
    assert_int_equal(open_in(dir, "cuda", text, sizeof text), ERR_UNSUPPORTED);
    if (!strstr(text, "device \"cuda\" is not available: this build has no libglowq_cuda.so") ||
        !strstr(text, "nvcc 12"))
        fail_msg("said: %s", text);
}

/* A file of that name is taken, and if it can't be loaded, dlopen's own words are passed on. */
static void test_broken_module_is_named(void **unused)
{
    char text[2048], path[256];
    (void)unused;
    snprintf(path, sizeof path, "%s/libglowq_cuda.so", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("not a library", f);
    fclose(f);
    assert_int_equal(open_in(dir, "cuda", text, sizeof text), ERR_UNSUPPORTED);
    unlink(path);
    if (!strstr(text, "device \"cuda\" is not available: ") || !strstr(text, path))
        fail_msg("said: %s", text);
}

/* A library without our entry: cmocka's, which is there. */
static void test_foreign_library_is_refused(void **unused)
{
    char text[2048], path[256];
    Dl_info library;
    (void)unused;
    assert_int_not_equal(dladdr(dlsym(RTLD_DEFAULT, "_cmocka_run_group_tests"), &library), 0);
    snprintf(path, sizeof path, "%s/libglowq_cuda.so", dir);
    assert_int_equal(symlink(library.dli_fname, path), 0);
    assert_int_equal(open_in(dir, "cuda", text, sizeof text), ERR_UNSUPPORTED);
    unlink(path);
    if (!strstr(text, "was built for another version of glowq"))
        fail_msg("said: %s", text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_module_is_named),
        cmocka_unit_test(test_broken_module_is_named),
        cmocka_unit_test(test_foreign_library_is_refused),
    };
    if (!mkdtemp(dir))
        return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return failed;
}
