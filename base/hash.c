/* SPDX-License-Identifier: Apache-2.0
 * Hashes: see hash.h. */
#include "base/hash.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

struct sha256 {
    EVP_MD_CTX *ctx;
};

int sha256_open(struct sha256 **h)
{
    int err = OK;
    struct sha256 *s = calloc(1, sizeof *s);
    if (!s || !(s->ctx = EVP_MD_CTX_new()) || EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1)
        FAIL(ERR_NOMEM, "SHA-256 context");
    *h = s;
    s = NULL;
out:
    if (s)
        EVP_MD_CTX_free(s->ctx);
    free(s);
    return err;
}

int sha256_add(struct sha256 *h, const void *data, size_t n)
{
    int err = OK;
    if (EVP_DigestUpdate(h->ctx, data, n) != 1)
        FAIL(ERR_NOMEM, "SHA-256 update of %zu bytes", n);
out:
    return err;
}

int sha256_close(struct sha256 *h, char hex[65])
{
    int err = OK;
    unsigned char digest[EVP_MAX_MD_SIZE];
    if (!h)
        return OK;
    if (EVP_DigestFinal_ex(h->ctx, digest, NULL) != 1)
        FAIL(ERR_NOMEM, "SHA-256 final");
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    hex[64] = 0;
out:
    EVP_MD_CTX_free(h->ctx);
    free(h);
    return err;
}

int sha256_hex(const void *data, size_t n, char hex[65])
{
    int err = OK;
    struct sha256 *h = NULL;
    TRY(sha256_open(&h));
    err = sha256_add(h, data, n);
    int closed = sha256_close(h, hex);
    err = err ? err : closed;
out:
    return err;
}

int sha256_file(const char *path, char hex[65])
{
    int err = OK, fd = -1;
    struct sha256 *h = NULL;
    unsigned char *block = NULL;
    const size_t block_bytes = 1 << 20;
    struct stat st;
    if ((fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0) /* a FIFO without a writer would block here */
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        FAIL(ERR_IO, "%s is not a regular file", path);
    if (!(block = malloc(block_bytes)))
        FAIL(ERR_NOMEM, "%zu bytes", block_bytes);
    TRY(sha256_open(&h));
    for (;;) {
        ssize_t n = read(fd, block, block_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            FAIL(ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0)
            break;
        TRY(sha256_add(h, block, (size_t)n));
    }
    struct sha256 *done = h;
    h = NULL;
    TRY(sha256_close(done, hex));
out:
    if (h) {
        char unused[65];
        sha256_close(h, unused);
    }
    free(block);
    if (fd >= 0)
        close(fd);
    return err;
}

void xxh3_128(const void *data, size_t n, uint8_t out[16])
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(data, n));
    memcpy(out, c.digest, 16);
}
