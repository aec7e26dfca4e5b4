/* SPDX-License-Identifier: Apache-2.0
 * Listing of an HDF5 file: see inspect_hdf5.h. The file is visited, not interpreted: what a layer's file means is
 * model/store.h's to say, what is in it shall be visible even where that is wrong.
 */
#include "launch/inspect_hdf5.h"

#include "base/err.h"
#include "base/file.h"
#include "launch/commands.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DIMS = 8, MOST_VALUES = 16 };

static void type_text(hid_t type, char *out, size_t size)
{
    size_t bits = 8 * H5Tget_size(type);
    switch (H5Tget_class(type)) {
    case H5T_INTEGER:
        snprintf(out, size, "%s%zu", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "i", bits);
        break;
    case H5T_FLOAT:
        snprintf(out, size, "f%zu", bits);
        break;
    case H5T_STRING:
        snprintf(out, size, "string");
        break;
    case H5T_OPAQUE:
        snprintf(out, size, "opaque%zu", bits);
        break;
    default:
        snprintf(out, size, "other%zu", bits);
    }
}

/* An attribute's value: a string, a number, or a list of at most MOST_VALUES numbers. */
static json_t *attribute_value(hid_t attribute)
{
    json_t *value = NULL;
    hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
    hssize_t n = H5Sget_simple_extent_npoints(space);
    if (H5Tget_class(type) == H5T_STRING && n == 1) {
        if (H5Tis_variable_str(type) > 0) {
            char *text = NULL;
            if (H5Aread(attribute, type, &text) >= 0 && text)
                value = json_string(text);
            H5free_memory(text);
        } else {
            size_t size = H5Tget_size(type);
            char *text = calloc(size + 1, 1);
            if (text && H5Aread(attribute, type, text) >= 0)
                value = json_string(text);
            free(text);
        }
    } else if (n >= 1 && n <= MOST_VALUES && H5Tget_class(type) == H5T_INTEGER) {
        long long v[MOST_VALUES];
        if (H5Aread(attribute, H5T_NATIVE_LLONG, v) >= 0) {
            value = json_array();
            for (hssize_t i = 0; i < n; i++)
                json_array_append_new(value, json_integer(v[i]));
        }
    } else if (n >= 1 && n <= MOST_VALUES && H5Tget_class(type) == H5T_FLOAT) {
        double v[MOST_VALUES];
        if (H5Aread(attribute, H5T_NATIVE_DOUBLE, v) >= 0) {
            value = json_array();
            for (hssize_t i = 0; i < n; i++)
                json_array_append_new(value, json_number(v[i]));
        }
    }
    if (json_is_array(value) && json_array_size(value) == 1) {
        json_t *one = json_incref(json_array_get(value, 0));
        json_decref(value);
        value = one;
    }
    H5Sclose(space);
    H5Tclose(type);
    return value ? value : json_null();
}

static herr_t on_attribute(hid_t object, const char *name, const H5A_info_t *info, void *ctx)
{
    (void)info;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    if (attribute < 0)
        return -1;
    json_object_set_new(ctx, name, attribute_value(attribute));
    H5Aclose(attribute);
    return 0;
}

static void add_dataset(hid_t dataset, json_t *entry)
{
    hsize_t dims[MOST_DIMS];
    char text[32];
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    int n = H5Sget_simple_extent_ndims(space);
    json_t *shape = json_array();
    if (n >= 0 && n <= MOST_DIMS) {
        H5Sget_simple_extent_dims(space, dims, NULL);
        for (int i = 0; i < n; i++)
            json_array_append_new(shape, json_integer((json_int_t)dims[i]));
    }
    type_text(type, text, sizeof text);
    json_object_set_new(entry, "dtype", json_string(text));
    json_object_set_new(entry, "shape", shape);
    json_object_set_new(entry, "bytes", json_integer((json_int_t)H5Dget_storage_size(dataset)));
    H5Sclose(space);
    H5Tclose(type);
}

static herr_t on_object(hid_t root, const char *name, const H5O_info_t *info, void *ctx)
{
    hid_t object = H5Oopen(root, name, H5P_DEFAULT);
    if (object < 0)
        return -1;
    json_t *attributes = json_object();
    herr_t status = H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, NULL, on_attribute, attributes);
    if (info->type == H5O_TYPE_DATASET || json_object_size(attributes) > 0) {
        json_t *entry = json_pack("{s:s,s:s,s:O}", "name", name, "type",
                                  info->type == H5O_TYPE_DATASET ? "dataset" : "group", "attributes", attributes);
        if (info->type == H5O_TYPE_DATASET)
            add_dataset(object, entry);
        json_array_append_new(ctx, entry);
    }
    json_decref(attributes);
    H5Oclose(object);
    return status;
}

static int is_checksum(const char *name)
{
    return strcmp(name, "checksums") == 0 || strncmp(name, "checksums/", 10) == 0;
}

/* A dataset: type, shape, bytes. A group: its attributes. */
static void print_entry(const json_t *entry, int width)
{
    const json_t *shape = json_object_get(entry, "shape");
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (shape) {
        /* HDF5 has no bf16: the store says in an attribute what the bits are */
        const char *dtype = json_string_value(json_object_get(json_object_get(entry, "attributes"), "dtype"));
        char *dims = json_dumps(shape, 0);
        out_print("%-*s  %-5s %-18s %12lld\n", width, name,
                  dtype ? dtype : json_string_value(json_object_get(entry, "dtype")), dims ? dims : "",
                  (long long)json_integer_value(json_object_get(entry, "bytes")));
        free(dims);
    } else {
        const char *key;
        json_t *value;
        out_print("%-*s ", width, strcmp(name, ".") == 0 ? "/" : name);
        json_object_foreach(json_object_get(entry, "attributes"), key, value)
        {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
            out_print(" %s=%s", key, json_is_string(value) ? json_string_value(value) : text ? text : "");
            free(text);
        }
        out_print("\n");
    }
}

static void print_list(const json_t *list)
{
    size_t i, n_checksums = 0;
    const json_t *entry;
    int width = 4;
    json_array_foreach(list, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (is_checksum(name))
            n_checksums++;
        else if ((int)strlen(name) > width)
            width = (int)strlen(name);
    }
    json_array_foreach(list, i, entry)
    {
        if (!is_checksum(json_string_value(json_object_get(entry, "name"))))
            print_entry(entry, width);
    }
    if (n_checksums)
        out_print("and checksums of %zu datasets\n", n_checksums);
}

int inspect_hdf5(const char *path, int as_json)
{
    int err = OK;
    hid_t file = H5I_INVALID_HID;
    json_t *list = json_array();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* we say what is wrong ourselves */
    if (!file_exists(path))
        FAIL(ERR_IO, "%s: no such file", path);
    if ((file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT)) < 0)
        FAIL(ERR_FORMAT, "%s: not an HDF5 file, or damaged", path);
    if (H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, on_object, list, H5O_INFO_BASIC) < 0)
        FAIL(ERR_FORMAT, "%s: damaged behind object %zu", path, json_array_size(list));
    if (as_json) {
        TRY(out_json(json_pack("{s:i,s:s,s:s,s:O}", "schema_version", JSON_SCHEMA_VERSION, "path", path, "kind", "hdf5",
                               "objects", list)));
        goto out;
    }
    print_list(list);
out:
    if (file >= 0)
        H5Fclose(file);
    json_decref(list);
    return err;
}
