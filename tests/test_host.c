/* SPDX-License-Identifier: Apache-2.0
 * The memory that control groups leave, read off trees of files such as kernels show: both versions, the groups above, containers.
 * And a process's part of its machine's cores.
 */
#include "base/cores.h"
#include "base/err.h"
#include "base/file.h"
#include "base/host.h"

#include <limits.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MI (INT64_C(1) << 20)

static char root[64];

static void put(const char *path, const char *text)
{
    char whole[PATH_MAX];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    *strrchr(whole, '/') = 0;
    assert_int_equal(file_make_dirs(whole), OK);
    whole[strlen(whole)] = '/';
    assert_int_equal(file_publish(whole, text, strlen(text)), OK);
}

/* A machine of 1000 MiB, 600 MiB of them available. */
static int make_machine(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "test_host.XXXXXX");
    if (!mkdtemp(root))
        return -1;
    put("/proc/meminfo", "MemTotal:        1024000 kB\nMemFree:           1024 kB\nMemAvailable:     614400 kB\n");
    return 0;
}

static int remove_machine(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

static void is(int64_t total, int64_t available)
{
    const struct host_memory memory = host_memory(root);
    assert_int_equal(memory.total, total);
    assert_int_equal(memory.available, available);
}

static void test_no_groups(void **state)
{
    (void)state;
    is(1000 * MI, 600 * MI);
    put("/proc/self/cgroup", "0::/user.slice\n"); /* of which nothing is mounted */
    is(1000 * MI, 600 * MI);
}

static void test_version_2(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
    put("/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
    put("/sys/fs/cgroup/slurm/job_7/step_0/memory.current", "104857600\n");
    is(1000 * MI, 600 * MI);
    put("/sys/fs/cgroup/slurm/job_7/memory.max",
        "314572800\n"); /* 300 MiB for the job, of which 200 are used, 50 of them idle */
    put("/sys/fs/cgroup/slurm/job_7/memory.current", "209715200\n");
    put("/sys/fs/cgroup/slurm/job_7/memory.stat", "anon 1\ninactive_file 52428800\nactive_file 7\n");
    is(300 * MI, 150 * MI);
    put("/sys/fs/cgroup/slurm/memory.max", "629145600\n"); /* 600 MiB for all jobs, which others have nearly used up */
    put("/sys/fs/cgroup/slurm/memory.current", "608174080\n");
    is(300 * MI, 20 * MI);
    put("/sys/fs/cgroup/slurm/memory.current", "640000000\n"); /* more than its limit, which was lowered */
    is(300 * MI, 0);
    put("/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "0\n");
    is(0, 0);
}

static void test_version_1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "9:name=memory:/other\n4:cpu,memory:/slurm/job_7\n3:memoryless:/other\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "400000000\n");
    put("/sys/fs/cgroup/memory/other/memory.limit_in_bytes", "4096\n");
    put("/sys/fs/cgroup/memory/other/memory.usage_in_bytes", "4096\n");
    is(1000 * MI, 600 * MI);
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "314572800\n");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", "209715200\n");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.stat", "inactive_file 1\ntotal_inactive_file 52428800\n");
    is(300 * MI, 150 * MI);
}

/* A container's own group is mounted in place of all, while the path is the host's. */
static void test_container(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/docker/1234\n");
    put("/sys/fs/cgroup/memory.max", "209715200\n");
    put("/sys/fs/cgroup/memory.current", "104857600\n");
    is(200 * MI, 100 * MI);
}

/* ---- cores ------------------------------------------------------------------------------------------------------ */

/* "0-3,8" as a mask. */
static struct cores mask(const char *list)
{
    struct cores cores = {0};
    for (char *end; *list; list = *end == ',' ? end + 1 : end) {
        const long first = strtol(list, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long c = first; c <= last; c++)
            cores_add(&cores, (int)c);
    }
    return cores;
}

static void shares(int n, const char *const *lists, const int *threads)
{
    struct cores all[8];
    for (int p = 0; p < n; p++)
        all[p] = mask(lists[p]);
    for (int p = 0; p < n; p++) {
        const struct core_share share = cores_share(all, n, p);
        assert_int_equal(share.threads, threads[p]);
        assert_int_equal(share.n, cores_count(&all[p]));
    }
}
#define SHARES(n, ...) shares(n, (const char *const[]){__VA_ARGS__}, (const int[])

static void test_cores(void **state)
{
    (void)state;
    SHARES(1, "0-15"){16});
    SHARES(2, "0-15", "0-15"){8, 8});
    SHARES(2, "4,5", "4,5"){1, 1});          /* a cpuset of two on a larger machine */
    SHARES(2, "0-3", "4-7"){4, 4});          /* bound apart */
    SHARES(4, "0-7", "0-7", "8-15", "8-15"){4, 4, 4, 4}); /* by socket */
    SHARES(3, "0-3", "0-3", "0-3"){1, 1, 1});
    SHARES(3, "0-2", "0-2", "0-2"){1, 1, 1});
    SHARES(2, "0-7", "0"){7, 1});
    SHARES(2, "2000-2003", "2000-2003"){2, 2}); /* beyond what a cpu_set_t holds */
    const struct cores one[3] = {mask("0"), mask("0"), mask("1-7")};
    assert_int_equal(cores_share(one, 3, 0).starved, 1);
    assert_int_equal(cores_share(one, 3, 0).sharers, 2);
    assert_int_equal(cores_share(one, 3, 2).starved, 0);
    assert_int_equal(cores_share(one, 3, 2).sharers, 1);
}

static void test_list_of_cores(void **state)
{
    static const char *const lists[] = {"0", "0-3,8", "1,3,5", "63-64,127-128", "1022-1025,8191"};
    char text[64], cut[6];
    struct cores own;
    (void)state;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        const struct cores cores = mask(lists[i]);
        cores_list(&cores, text, sizeof text);
        assert_string_equal(text, lists[i]);
        cores_list(&cores, cut, sizeof cut);
        assert_memory_equal(cut, lists[i], strlen(cut));
    }
    cores_own(&own);
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    for (int c = 0; c < CPU_SETSIZE; c++)
        assert_int_equal(cores_have(&own, c), CPU_ISSET(c, &set) != 0);
}

int main(void)
{
#define ON_MACHINE(f) cmocka_unit_test_setup_teardown(f, make_machine, remove_machine)
    const struct CMUnitTest tests[] = {
        ON_MACHINE(test_no_groups), ON_MACHINE(test_version_2),   ON_MACHINE(test_version_1),
        ON_MACHINE(test_container), cmocka_unit_test(test_cores), cmocka_unit_test(test_list_of_cores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
