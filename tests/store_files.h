/* SPDX-License-Identifier: Apache-2.0
 * For the tests of the store: the folder that they work in, and what is done to its files behind the store's back: hashed, flipped
 * bits, datasets found and edited. */
#ifndef GLOWQ_TESTS_STORE_FILES_H
#define GLOWQ_TESTS_STORE_FILES_H

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/manifest.h"

#include <hdf5.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX];

static inline void path_of(char *out, const char *dir, const char *name)
{
    assert_int_equal(file_join(out, PATH_MAX, dir, name), OK);
}

static inline void hash_of(const char *dir, const char *name, char hex[65])
{
    char path[PATH_MAX];
    path_of(path, dir, name);
    assert_int_equal(sha256_file(path, hex), OK);
}

static const char *const files[] = {"layers/0000.h5", "layers/0001.h5", "head.h5",
                                    "model.h5",       "config.json",    "manifest.json"};
enum { N_FILES = 6 };

static inline void flip(const char *path, int64_t byte, int bit)
{
    int fd = open(path, O_RDWR);
    uint8_t v;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &v, 1, byte), 1);
    v ^= (uint8_t)(1 << bit);
    assert_int_equal(pwrite(fd, &v, 1, byte), 1);
    close(fd);
}

static inline int64_t size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_size;
}

struct place {
    char name[64];
    int64_t offset, bytes;
    int64_t slabs; /* experts on its leading axis; 0: no such axis */
};

struct places {
    struct place at[256];
    int n;
};

static inline herr_t add_place(hid_t file, const char *name, const H5O_info_t *info, void *ctx)
{
    struct places *p = ctx;
    if (info->type != H5O_TYPE_DATASET)
        return 0;
    hid_t d = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(d);
    hsize_t dims[H5S_MAX_RANK];
    assert_true(p->n < 256);
    struct place *at = &p->at[p->n++];
    snprintf(at->name, sizeof at->name, "/%s", name);
    at->offset = (int64_t)H5Dget_offset(d);
    at->bytes = (int64_t)H5Dget_storage_size(d);
    at->slabs = H5Sget_simple_extent_dims(space, dims, NULL) == 3 ? (int64_t)dims[0] : 0;
    H5Sclose(space);
    H5Dclose(d);
    return 0;
}

static inline void find_places(const char *path, struct places *p)
{
    p->n = 0;
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(file >= 0);
    assert_true(H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, add_place, p) >= 0);
    H5Fclose(file);
}

/* Replaces an attribute, or a dataset by one of another shape, the way another program would. */
static inline void edit_attribute(const char *path, const char *object, const char *name, int64_t value)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), at = H5Oopen(file, object, H5P_DEFAULT);
    hid_t attribute = H5Aopen(at, name, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
    H5Aclose(attribute);
    H5Oclose(at);
    assert_true(H5Fclose(file) >= 0);
}

static inline void edit_shape(const char *path, const char *name, int n_dims, const hsize_t *dims, hid_t type)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), space = H5Screate_simple(n_dims, dims, NULL);
    assert_true(H5Ldelete(file, name, H5P_DEFAULT) >= 0);
    hid_t data = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(data >= 0);
    H5Dclose(data);
    H5Sclose(space);
    assert_true(H5Fclose(file) >= 0);
}

/* What a dataset says its elements are. */
static inline void edit_dtype(const char *path, const char *dataset, const char *dtype)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), data = H5Dopen2(file, dataset, H5P_DEFAULT);
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    assert_true(H5Tset_size(type, strlen(dtype)) >= 0);
    hid_t attribute = H5Acreate2(data, "dtype", type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, type, dtype) >= 0);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
    H5Dclose(data);
    assert_true(H5Fclose(file) >= 0);
}

static inline void rewrite_manifest(const char *dir)
{
    json_t *nothing = json_object();
    assert_int_equal(manifest_write(dir, 2, nothing), OK);
    json_decref(nothing);
}

static inline int count_files(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

static inline int make_root(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    if (!tmp) /* thousands of small files, each synced: memory is as good as a disk for them */
        tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(root, sizeof root, "%s/glowq_store_XXXXXX", tmp);
    return mkdtemp(root) ? 0 : -1;
}

static inline int remove_root(void **state)
{
    (void)state;
    char command[PATH_MAX + 16];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

#endif
