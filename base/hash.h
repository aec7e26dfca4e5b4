/* SPDX-License-Identifier: Apache-2.0
 * Hashes: SHA-256 (OpenSSL) for what a person compares, XXH3-128 (xxHash) for integrity of blocks. Not collective. */
#ifndef GLOWQ_BASE_HASH_H
#define GLOWQ_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct sha256; /* running hash */
int sha256_open(struct sha256 **h);
int sha256_add(struct sha256 *h, const void *data, size_t n);
/* 64 lower-case hex digits and a 0 byte; frees h. */
int sha256_close(struct sha256 *h, char hex[65]);

int sha256_hex(const void *data, size_t n, char hex[65]);
int sha256_file(const char *path, char hex[65]);
/* Canonical (big-endian) XXH3-128 of n bytes. */
void xxh3_128(const void *data, size_t n, uint8_t out[16]);

#endif
