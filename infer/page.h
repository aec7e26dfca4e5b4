/* SPDX-License-Identifier: Apache-2.0
 * The built-in page, page.html, as the build embeds it (CMakeLists.txt makes page.c).
 */
#ifndef GLOWQ_INFER_PAGE_H
#define GLOWQ_INFER_PAGE_H

#include <stddef.h>

extern const char page_html[];
extern const size_t page_html_bytes;

#endif
