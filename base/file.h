/* SPDX-License-Identifier: Apache-2.0
 * Files: whole reads, positioned reads, and publication that never leaves half a file under its final name.
 * Publishing = write PATH's temporary sibling, fsync it, rename, fsync the folder; every step is checked, and a failed fsync is
 * final (the kernel may have dropped the pages). Not collective. */
#ifndef GLOWQ_BASE_FILE_H
#define GLOWQ_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Whole file into *data (caller frees; a 0 byte follows the content). ERR_FORMAT if larger than max_bytes. */
int file_read(const char *path, size_t max_bytes, char **data, size_t *n);
/* Exactly n bytes at offset; short files give ERR_FORMAT. path only for messages. */
int file_pread(int fd, const char *path, void *dst, size_t n, uint64_t offset);
/* All n bytes at offset, or ERR_IO naming path. */
int file_pwrite(int fd, const char *path, const void *data, size_t n, uint64_t offset);
/* "DIR/.NAME.tmp" of "DIR/NAME": where a file is written before file_publish_rename. */
int file_temporary(const char *path, char *out, size_t size);
/* fsync temporary, rename it to path, fsync the folder. */
int file_publish_rename(const char *temporary, const char *path);
/* Write n bytes and publish them as path. */
int file_publish(const char *path, const void *data, size_t n);
/* Copy a file's bytes and publish them. */
int file_copy(const char *from, const char *to);
/* mkdir -p. */
int file_make_dirs(const char *path);
int file_exists(const char *path);
int file_is_dir(const char *path);
/* dir has something of that name. */
int file_is_in(const char *dir, const char *name);
/* dir + "/" + name into out; ERR_ARG if it doesn't fit. */
int file_join(char *out, size_t size, const char *dir, const char *name);

#endif
