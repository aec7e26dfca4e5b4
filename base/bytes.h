/* SPDX-License-Identifier: Apache-2.0
 * Bytes as a person reads them: of memory, files and messages, in binary units everywhere, so that figures can be compared with each
 * other and with --memory 5G. Rates (GB/s) are in decimal ones, and JSON has plain bytes. */
#ifndef GLOWQ_BASE_BYTES_H
#define GLOWQ_BASE_BYTES_H

#include <stddef.h>

enum { BYTES_TEXT = 16 }; /* room for any text of it */

/* "999 B", "1.5 MiB". Returns out. */
char *format_bytes(double bytes, char *out, size_t size);
/* "5G", "800M", "0.5" (of a G); 0: that is no size. */
size_t parse_bytes(const char *text);

#endif
