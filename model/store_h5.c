/* SPDX-License-Identifier: Apache-2.0
 * HDF5 files and attributes: see store_h5.h. */
#include "model/store_h5.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static herr_t keep_innermost(unsigned n, const H5E_error2_t *e, void *text)
{
    if (n == 0)
        snprintf(text, 320, "%s: %s", e->func_name, e->desc);
    return 0;
}

int h5_fail(int code, const char *file, int line, const char *fmt, ...)
{
    char ours[1024], theirs[320] = "no message";
    va_list args;
    va_start(args, fmt);
    vsnprintf(ours, sizeof ours, fmt, args);
    va_end(args);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, theirs);
    return err_set((enum err)code, file, line, "%s (HDF5: %s)", ours, theirs);
}

/* HDF5 prints its error stack to stderr unless told not to; h5_fail keeps its innermost message instead. */
static void tame(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void h5_drop(hid_t id)
{
    if (id >= 0)
        H5Idec_ref(id);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int access_properties(hid_t *properties)
{
    int err = OK;
    tame();
    TRY_H5(ERR_NOMEM, *properties = H5Pcreate(H5P_FILE_ACCESS), "file properties");
    /* Datasets of a page's worth start on a page, so that they can be mapped and read without straddling. */
    TRY_H5(ERR_NOMEM, H5Pset_alignment(*properties, 65536, 4096), "alignment");
    /* One fixed format, whatever HDF5 is linked (newer ones would otherwise write other bytes): the oldest one whose
     * metadata all has checksums, so that the most programs can read it. */
    TRY_H5(ERR_NOMEM, H5Pset_libver_bounds(*properties, H5F_LIBVER_V18, H5F_LIBVER_V18), "format bounds");
    TRY_H5(ERR_NOMEM, H5Pset_fclose_degree(*properties, H5F_CLOSE_STRONG), "close degree");
    /* Published files never change and unpublished ones are guarded by store_lock; many cluster file systems refuse
     * locks. */
    TRY_H5(ERR_NOMEM, H5Pset_file_locking(*properties, 0, 1), "file locking");
out:
    return err;
}

/* No times, and attributes and links kept in the object's header however many there are: headers carry checksums. */
static int object_properties(hid_t properties)
{
    int err = OK;
    TRY_H5(ERR_NOMEM, H5Pset_obj_track_times(properties, 0), "track times");
    TRY_H5(ERR_NOMEM, H5Pset_attr_phase_change(properties, 4096, 0), "attribute storage");
out:
    return err;
}

int h5_group_properties(hid_t *properties)
{
    int err = OK;
    TRY_H5(ERR_NOMEM, *properties = H5Pcreate(H5P_GROUP_CREATE), "group properties");
    TRY(object_properties(*properties));
    TRY_H5(ERR_NOMEM, H5Pset_link_phase_change(*properties, 4096, 0), "link storage");
out:
    return err;
}

int h5_create(const char *path, hid_t *file, int *memory)
{
    int err = OK;
    void *handle = NULL;
    hid_t access = -1, creation = -1;
    *file = -1;
    if ((*memory = memfd_create("glowq_store", MFD_CLOEXEC)) < 0)
        FAIL(ERR_NOMEM, "cannot create a file in memory: %s", strerror(errno));
    TRY(access_properties(&access));
    TRY_H5(ERR_NOMEM, creation = H5Pcreate(H5P_FILE_CREATE), "file creation properties");
    TRY(object_properties(creation));
    TRY_H5(ERR_NOMEM, H5Pset_link_phase_change(creation, 4096, 0), "link storage");
    TRY_H5(ERR_IO, *file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access), "cannot create %s", path);
    /* The default driver's handle is its descriptor. What it has written so far, a first superblock, it writes again.
     */
    TRY_H5(ERR_IO, H5Fget_vfd_handle(*file, H5P_DEFAULT, &handle), "%s: no descriptor", path);
    if (dup3(*memory, *(int *)handle, O_CLOEXEC) < 0)
        FAIL(ERR_IO, "cannot move %s to memory: %s", path, strerror(errno));
out:
    h5_drop(creation);
    h5_drop(access);
    return err;
}

int h5_open(const char *path, hid_t *file)
{
    int err = OK, fd = -1;
    hid_t access = -1;
    struct stat st;
    *file = -1;
    TRY(access_properties(&access));
    /* The system's reason first: HDF5 would call a missing file a bad one, and wait for whoever writes to a FIFO. */
    if ((fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0)
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        FAIL(ERR_IO, "%s is not a regular file", path);
    TRY_H5(ERR_FORMAT, *file = H5Fopen(path, H5F_ACC_RDONLY, access), "%s: not a whole HDF5 file", path);
out:
    if (fd >= 0)
        close(fd);
    h5_drop(access);
    return err;
}

int h5_make_group(hid_t file, const char *path, const char *name)
{
    int err = OK;
    hid_t properties = -1, group = -1;
    char part[64];
    TRY(h5_group_properties(&properties));
    /* One level at a time, so that parents get our properties too. */
    size_t n = strlen(name);
    for (size_t i = 1; i <= n; i++) {
        if (name[i] != '/' && name[i] != 0)
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, name);
        if (h5_has(file, part))
            continue;
        TRY_H5(ERR_IO, group = H5Gcreate2(file, part, H5P_DEFAULT, properties, H5P_DEFAULT), "%s: cannot create %s",
               path, part);
        h5_drop(group);
    }
out:
    h5_drop(properties);
    return err;
}

int h5_has(hid_t file, const char *name)
{
    /* H5Lexists answers about the last part only and fails when a parent is missing: no such object either way. */
    return H5Lexists(file, name, H5P_DEFAULT) > 0;
}

/* ---- attributes ------------------------------------------------------------------------------------------------- */

/* Creates the attribute, or writes an existing one again: files get all attributes when they are created, so that they
 * have their final size from then on. The object is opened first: HDF5 1.10.8 can't write an attribute that
 * H5Aopen_by_name opened while the object itself is closed ("can't locate open attribute"). */
static int put(hid_t file, const char *path, const char *name, const char *key, hid_t type, const void *value)
{
    int err = OK;
    hid_t object = -1, space = -1, attribute = -1;
    TRY_H5(ERR_IO, object = H5Oopen(file, name, H5P_DEFAULT), "%s: cannot open %s", path, name);
    TRY_H5(ERR_NOMEM, space = H5Screate(H5S_SCALAR), "scalar");
    if (H5Aexists(object, key) > 0)
        attribute = H5Aopen(object, key, H5P_DEFAULT);
    else
        attribute = H5Acreate2(object, key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    TRY_H5(ERR_IO, attribute, "%s: cannot create attribute %s of %s", path, key, name);
    TRY_H5(ERR_IO, H5Awrite(attribute, type, value), "%s: cannot write attribute %s of %s", path, key, name);
out:
    h5_drop(attribute);
    h5_drop(space);
    h5_drop(object);
    return err;
}

int h5_put_i64(hid_t file, const char *path, const char *name, const char *key, int64_t value)
{
    return put(file, path, name, key, H5T_STD_I64LE, &value);
}

int h5_put_f64(hid_t file, const char *path, const char *name, const char *key, double value)
{
    return put(file, path, name, key, H5T_IEEE_F64LE, &value);
}

int h5_put_string(hid_t file, const char *path, const char *name, const char *key, const char *value)
{
    int err = OK;
    hid_t type = -1;
    size_t n = strlen(value);
    TRY_H5(ERR_NOMEM, type = H5Tcopy(H5T_C_S1), "string type");
    TRY_H5(ERR_NOMEM, H5Tset_size(type, n > 0 ? n : 1), "string type");
    TRY_H5(ERR_NOMEM, H5Tset_strpad(type, H5T_STR_NULLPAD), "string type");
    TRY(put(file, path, name, key, type, value));
out:
    h5_drop(type);
    return err;
}

/* class and size are what the type on disk must be; size 0: any up to max. */
static int get(hid_t file, const char *path, const char *name, const char *key, H5T_class_t class, size_t size,
               size_t max, void *value)
{
    int err = OK;
    hid_t attribute = -1, type = -1, space = -1;
    if (H5Aexists_by_name(file, name, key, H5P_DEFAULT) <= 0)
        FAIL(ERR_FORMAT, "%s: %s has no attribute %s", path, name, key);
    TRY_H5(ERR_FORMAT, attribute = H5Aopen_by_name(file, name, key, H5P_DEFAULT, H5P_DEFAULT),
           "%s: cannot open attribute %s of %s", path, key, name);
    TRY_H5(ERR_FORMAT, type = H5Aget_type(attribute), "%s: attribute %s of %s", path, key, name);
    TRY_H5(ERR_FORMAT, space = H5Aget_space(attribute), "%s: attribute %s of %s", path, key, name);
    size_t bytes = H5Tget_size(type);
    if (H5Tget_class(type) != class || (size && bytes != size) || bytes > max ||
        H5Sget_simple_extent_npoints(space) != 1 || (class == H5T_STRING && H5Tis_variable_str(type) != 0))
        FAIL(ERR_FORMAT, "%s: attribute %s of %s has another type or size than the store gives it", path, key, name);
    TRY_H5(ERR_FORMAT, H5Aread(attribute, type, value), "%s: cannot read attribute %s of %s", path, key, name);
out:
    h5_drop(space);
    h5_drop(type);
    h5_drop(attribute);
    return err;
}

int h5_get_i64(hid_t file, const char *path, const char *name, const char *key, int64_t *value)
{
    return get(file, path, name, key, H5T_INTEGER, sizeof *value, sizeof *value, value);
}

int h5_get_f64(hid_t file, const char *path, const char *name, const char *key, double *value)
{
    return get(file, path, name, key, H5T_FLOAT, sizeof *value, sizeof *value, value);
}

int h5_get_string(hid_t file, const char *path, const char *name, const char *key, char *value, size_t size)
{
    memset(value, 0, size);
    return get(file, path, name, key, H5T_STRING, 0, size - 1, value);
}
