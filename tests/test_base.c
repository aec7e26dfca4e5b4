/* SPDX-License-Identifier: Apache-2.0
 * base/: JSON, files, hashes (against published ones), errors and talk.
 */
#include "base/bytes.h"
#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "tests/checkpoint_files.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

/* ---- JSON ---- */

static void assert_refused(const char *text, size_t n)
{
    json_t *v = NULL;
    err_quiet(1);
    int err = json_parse(text, n, "some.json", &v);
    err_quiet(0);
    assert_int_equal(err, ERR_FORMAT);
    assert_null(v);
    assert_non_null(strstr(err_last(), "some.json"));
    assert_non_null(strstr(err_last(), "line "));
}

/* Three digits and a binary unit. */
static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        double bytes;
        const char *text;
    } cases[] = {{0, "0 B"},           {999, "999 B"},      {1000, "1.0 KiB"},    {1536, "1.5 KiB"},
                 {102300, "99.9 KiB"}, {102400, "100 KiB"}, {1048576, "1.0 MiB"}, {1.5 * 1073741824, "1.5 GiB"},
                 {3e12, "2.7 TiB"},    {0x1p62, "4096 PiB"}};
    char text[BYTES_TEXT];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(format_bytes(cases[i].bytes, text, sizeof text), cases[i].text);
}

static void test_json_is_strict(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "{\"a\":1,\"a\":2}",
                                      "{} x",
                                      "[1,]",
                                      "{'a':1}",
                                      "nul",
                                      "\"\xff\"",
                                      "[01]",
                                      "[1e999]",
                                      "[NaN]",
                                      "[99999999999999999999]",
                                      "\"\\ud800\"",
                                      "{\"a\":{\"b\":1,\"b\":1}}",
                                      "\"\\u0000\"",
                                      "// c\n1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_refused(bad[i], strlen(bad[i]));
    assert_refused("{}\0", 3); /* a 0 byte after the text is not its end */
    assert_refused("\xef\xbb\xbf{}", 5);
    static const char good[] = "{\"a\":[1,2.5,null,true,\"\xc3\xa9\"]}xxx";
    json_t *v = NULL;
    assert_int_equal(json_parse(good, sizeof good - 4, "x", &v), OK); /* n bytes, not up to a 0 */
    assert_int_equal(json_array_size(json_object_get(v, "a")), 5);
    json_decref(v);
}

/* Depth is bounded: a file of brackets is an error, not a stack overflow. */
static void test_json_depth_is_bounded(void **state)
{
    (void)state;
    const size_t n = 4 << 20;
    char *text = malloc(n);
    memset(text, '[', n);
    assert_refused(text, n);
    for (size_t i = 0; i + 5 <= n; i += 5)
        memcpy(text + i, "{\"a\":", 5);
    assert_refused(text, n);
    free(text);
}

static void assert_names(int err, const char *key, const char *expected, const char *found)
{
    assert_int_equal(err, ERR_FORMAT);
    assert_non_null(strstr(err_last(), "dir/config.json"));
    assert_non_null(strstr(err_last(), key));
    assert_non_null(strstr(err_last(), expected));
    assert_non_null(strstr(err_last(), found));
}

static void test_json_members(void **state)
{
    (void)state;
    static const char text[] =
        "{\"i\":-7,\"d\":0.5,\"s\":\"x\",\"b\":true,\"n\":null,\"l\":[],\"big\":9223372036854775807}";
    const char *where = "dir/config.json", *s;
    json_t *o = NULL;
    int64_t i;
    double d;
    int b;
    assert_int_equal(json_parse(text, sizeof text - 1, where, &o), OK);
    assert_int_equal(json_get_int(o, "i", where, &i), OK);
    assert_int_equal(i, -7);
    assert_int_equal(json_get_int(o, "big", where, &i), OK);
    assert_true(i == INT64_MAX);
    assert_int_equal(json_get_double(o, "i", where, &d), OK); /* an integer is a number */
    assert_true(d == -7);
    assert_int_equal(json_opt_int(o, "n", 3, where, &i), OK); /* null counts as missing */
    assert_int_equal(i, 3);
    assert_int_equal(json_opt_double(o, "none", 0.25, where, &d), OK);
    assert_true(d == 0.25);
    assert_int_equal(json_opt_bool(o, "b", 0, where, &b), OK);
    assert_int_equal(b, 1);
    assert_int_equal(json_opt_bool(o, "none", 1, where, &b), OK);
    assert_int_equal(b, 1);
    assert_int_equal(json_opt_string(o, "s", "y", where, &s), OK);
    assert_string_equal(s, "x");
    assert_int_equal(json_opt_string(o, "n", "y", where, &s), OK);
    assert_string_equal(s, "y");
    err_quiet(1);
    assert_names(json_get_int(o, "d", where, &i), "\"d\"", "integer", "real");
    assert_names(json_get_int(o, "missing", where, &i), "\"missing\"", "integer", "nothing");
    assert_names(json_get_double(o, "s", where, &d), "\"s\"", "number", "string");
    assert_names(json_get_double(o, "n", where, &d), "\"n\"", "number", "null");
    assert_names(json_opt_int(o, "l", 1, where, &i), "\"l\"", "integer", "array");
    assert_names(json_opt_double(o, "b", 1, where, &d), "\"b\"", "number", "true");
    assert_names(json_opt_bool(o, "i", 1, where, &b), "\"i\"", "true or false", "integer");
    assert_names(json_opt_string(o, "i", "", where, &s), "\"i\"", "string", "integer");
    err_quiet(0);
    json_decref(o);
}

static void test_json_write_and_read(void **state)
{
    (void)state;
    char path[PATH_MAX], *text = NULL;
    size_t n = 0;
    json_t *in = json_pack("{s:f,s:i,s:s}", "z", 0.1, "a", 3, "m", "\xe2\x82\xac"), *out = NULL;
    scratch_path(path, "a.json");
    assert_int_equal(json_write(path, in), OK);
    assert_int_equal(file_read(path, 1000, &text, &n), OK);
    assert_string_equal(text, "{\n  \"a\": 3,\n  \"m\": \"\xe2\x82\xac\",\n  \"z\": 0.10000000000000001\n}\n");
    assert_int_equal(json_read(path, 1000, &out), OK);
    assert_true(json_equal(in, out));
    json_decref(out);
    err_quiet(1);
    assert_int_equal(json_read(path, n - 1, &out), ERR_FORMAT);
    assert_null(out);
    assert_int_equal(json_read("nowhere.json", 1000, &out), ERR_IO);
    assert_non_null(strstr(err_last(), "nowhere.json"));
    err_quiet(0);
    json_decref(in);
    free(text);
}

/* ---- files ---- */

static int n_entries(void)
{
    int n = 0;
    DIR *d = opendir(scratch);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

static void test_file_read_and_pread(void **state)
{
    (void)state;
    char path[PATH_MAX], *data = NULL, five[6] = "";
    size_t n = 0;
    scratch_path(path, "five");
    assert_int_equal(file_publish(path, "ab\0de", 5), OK);
    assert_int_equal(file_read(path, 5, &data, &n), OK);
    assert_int_equal(n, 5);
    assert_memory_equal(data, "ab\0de\0", 6); /* a 0 byte follows */
    free(data);
    int fd = open(path, O_RDONLY);
    assert_int_equal(file_pread(fd, path, five, 3, 2), OK);
    assert_memory_equal(five, "\0de", 3);
    assert_int_equal(file_pread(fd, path, five, 0, 99), OK);
    err_quiet(1);
    assert_int_equal(file_read(path, 4, &data, &n), ERR_FORMAT);
    assert_null(data);
    assert_non_null(strstr(err_last(), path));
    assert_int_equal(file_pread(fd, path, five, 4, 2), ERR_FORMAT);
    assert_non_null(strstr(err_last(), path));
    assert_int_equal(file_pread(fd, path, five, 1, 1ull << 40), ERR_FORMAT);
    close(fd);
    assert_int_equal(file_pread(-1, path, five, 1, 0), ERR_IO);
    assert_int_equal(file_read(scratch, 1000, &data, &n), ERR_IO); /* a folder */
    scratch_path(path, "empty");
    assert_int_equal(file_publish(path, "", 0), OK);
    assert_int_equal(file_read(path, 0, &data, &n), OK);
    assert_true(n == 0 && data[0] == 0);
    free(data);
    err_quiet(0);
}

/* A FIFO nobody writes to is refused at once; SIGALRM's default action ends the program if it isn't. */
static void test_fifo_does_not_hang(void **state)
{
    (void)state;
    char path[PATH_MAX], *data = NULL, hex[65];
    size_t n = 0;
    scratch_path(path, "fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    err_quiet(1);
    alarm(20);
    assert_int_equal(file_read(path, 1000, &data, &n), ERR_IO);
    assert_non_null(strstr(err_last(), "not a regular file"));
    assert_int_equal(sha256_file(path, hex), ERR_IO);
    alarm(0);
    err_quiet(0);
}

static void test_publish_replaces_and_copies(void **state)
{
    (void)state;
    char path[PATH_MAX], copy[PATH_MAX], temporary[PATH_MAX], *data = NULL;
    size_t n = 0;
    scratch_path(path, "f");
    scratch_path(copy, "g");
    assert_int_equal(file_temporary("d/e/f.h5", temporary, sizeof temporary), OK);
    assert_string_equal(temporary, "d/e/.f.h5.tmp");
    assert_int_equal(file_temporary("f.h5", temporary, sizeof temporary), OK);
    assert_string_equal(temporary, ".f.h5.tmp");
    assert_int_equal(file_publish(path, "the first, longer text", 22), OK);
    assert_int_equal(file_publish(path, "second", 6), OK);
    assert_int_equal(file_copy(path, copy), OK);
    assert_int_equal(file_read(copy, 100, &data, &n), OK);
    assert_string_equal(data, "second");
    assert_int_equal(n_entries(), 2);
    free(data);
    err_quiet(1);
    assert_int_equal(file_temporary("abcdef", temporary, 8), ERR_ARG);
    assert_int_equal(file_join(temporary, 8, "abc", "defg"), ERR_ARG);
    err_quiet(0);
    assert_int_equal(file_join(temporary, 9, "abc", "defg"), OK);
    assert_string_equal(temporary, "abc/defg");
}

/* A publication that fails leaves what was there, and nothing else. */
static void test_failed_publish_leaves_nothing(void **state)
{
    (void)state;
    char path[PATH_MAX], below[PATH_MAX + 8], folder[PATH_MAX], inside[PATH_MAX + 8], *data = NULL;
    char *large = calloc(1, 1 << 20);
    size_t n = 0;
    struct rlimit before, small;
    scratch_path(path, "kept");
    scratch_path(folder, "folder");
    assert_int_equal(file_publish(path, "kept", 4), OK);
    err_quiet(1);

    snprintf(below, sizeof below, "%s/below", path); /* its parent is a file */
    assert_int_equal(file_publish(below, "x", 1), ERR_IO);
    assert_int_equal(file_copy("nowhere", below), ERR_IO);

    assert_int_equal(mkdir(folder, 0755), 0); /* the final name is a folder that isn't empty */
    snprintf(inside, sizeof inside, "%s/inside", folder);
    assert_int_equal(file_publish(inside, "x", 1), OK);
    assert_int_equal(file_publish(folder, "x", 1), ERR_IO);
    assert_true(file_is_dir(folder));
    assert_int_equal(unlink(inside), 0);
    assert_int_equal(n_entries(), 2);

    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN); /* the disk is full after 1000 bytes */
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){1000, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int err = file_publish(path, large, 1 << 20);
    scratch_path(below, "new");
    int err_new = file_publish(below, large, 1 << 20);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(err, ERR_IO);
    assert_int_equal(err_new, ERR_IO);
    assert_false(file_exists(below));
    assert_int_equal(n_entries(), 2);
    assert_int_equal(file_read(path, 100, &data, &n), OK);
    assert_string_equal(data, "kept");

    assert_int_equal(file_publish_rename("nowhere", path), ERR_IO);
    err_quiet(0);
    free(data);
    free(large);
}

static void test_make_dirs(void **state)
{
    (void)state;
    char path[PATH_MAX], file[PATH_MAX], below[PATH_MAX + 8], *too_long = malloc(PATH_MAX + 2);
    snprintf(path, sizeof path, "%s/a//b/c/", scratch);
    assert_int_equal(file_make_dirs(path), OK);
    assert_int_equal(file_make_dirs(path), OK);
    assert_true(file_is_dir(path));
    assert_int_equal(file_make_dirs("/"), OK);
    assert_int_equal(file_make_dirs("."), OK);
    scratch_path(file, "file");
    assert_int_equal(file_publish(file, "x", 1), OK);
    assert_true(file_exists(file) && !file_is_dir(file));
    snprintf(below, sizeof below, "%s/d", file);
    memset(too_long, 'x', PATH_MAX + 1);
    too_long[PATH_MAX + 1] = 0;
    err_quiet(1);
    assert_int_equal(file_make_dirs(below), ERR_IO);
    assert_int_equal(file_make_dirs(file), ERR_IO);
    assert_non_null(strstr(err_last(), "not a folder"));
    assert_int_equal(file_make_dirs(""), ERR_ARG);
    assert_int_equal(file_make_dirs(too_long), ERR_ARG);
    err_quiet(0);
    free(too_long);
    for (const char *p = "a/b/c\0a/b\0a\0"; *p; p += strlen(p) + 1) { /* scratch_clear removes no trees */
        scratch_path(file, p);
        assert_int_equal(rmdir(file), 0);
    }
}

/* ---- hashes ---- */

static void test_hashes_are_the_published_ones(void **state)
{
    (void)state;
    static const char *const sha_empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    static const char *const sha_abc =
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; /* FIPS 180-2 B.1 */
    static const char *const sha_million =
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"; /* FIPS 180-2 B.3 */
    /* XXH3-128 as other tools print it; the lengths take each of its branches (0, 1-3, 17-128, 129-240, longer). */
    static const struct {
        size_t n;
        const char *hex;
    } xxh[] = {{0, "99aa06d3014798d86001c324468d497f"},
               {17, "685bc458b37d057fc06e233df7729217"},
               {200, "cb0395310643ba0edd97e9af3609d9f5"},
               {300, "948c8677fbb606fcfdda6967cf021dbc"},
               {5000, "b92ec02c39d33ce7b418500fc42320ee"}};
    char hex[65], path[PATH_MAX], *million = malloc(1000000);
    struct sha256 *h = NULL;
    uint8_t pattern[5000], digest[16];
    memset(million, 'a', 1000000);
    assert_int_equal(sha256_hex("", 0, hex), OK);
    assert_string_equal(hex, sha_empty);
    assert_int_equal(sha256_hex("abc", 3, hex), OK);
    assert_string_equal(hex, sha_abc);
    assert_int_equal(sha256_open(&h), OK);
    for (size_t at = 0, n; at < 1000000; at += n) { /* pieces of 1, 3, 9, ... */
        n = 2 * at + 1 < 1000000 - at ? 2 * at + 1 : 1000000 - at;
        assert_int_equal(sha256_add(h, million + at, n), OK);
    }
    assert_int_equal(sha256_close(h, hex), OK);
    assert_string_equal(hex, sha_million);
    scratch_path(path, "million");
    assert_int_equal(file_publish(path, million, 1000000), OK);
    assert_int_equal(sha256_file(path, hex), OK);
    assert_string_equal(hex, sha_million);
    err_quiet(1);
    assert_int_equal(sha256_file("nowhere", hex), ERR_IO);
    assert_int_equal(sha256_file(scratch, hex), ERR_IO);
    err_quiet(0);
    for (int i = 0; i < 5000; i++)
        pattern[i] = (uint8_t)(i % 251);
    for (size_t i = 0; i < sizeof xxh / sizeof *xxh; i++) {
        xxh3_128(pattern, xxh[i].n, digest);
        for (int j = 0; j < 16; j++)
            snprintf(hex + 2 * j, 3, "%02x", digest[j]);
        assert_string_equal(hex, xxh[i].hex);
    }
    free(million);
}

/* ---- errors and talk ---- */

/* stderr goes to a file (or a terminal) between begin and end. */
static int kept_stderr;

static void stderr_to(int fd)
{
    fflush(stderr);
    kept_stderr = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
}

static void stderr_back(void)
{
    fflush(stderr);
    dup2(kept_stderr, STDERR_FILENO);
    close(kept_stderr);
}

static void talk_begin(void)
{
    char path[PATH_MAX];
    scratch_path(path, "talk");
    stderr_to(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
}

static char *talk_end(void)
{
    char path[PATH_MAX], *text = NULL;
    size_t n = 0;
    stderr_back();
    scratch_path(path, "talk");
    assert_int_equal(file_read(path, 1 << 20, &text, &n), OK);
    return text;
}

static void test_exit_codes(void **state)
{
    (void)state;
    static const struct {
        int err, exit_code;
    } table[] = {{OK, 0},       {ERR_ARG, 2}, {ERR_NOMEM, 1},   {ERR_IO, 1},  {ERR_FORMAT, 3},   {ERR_UNSUPPORTED, 3},
                 {ERR_COMM, 6}, {ERR_GPU, 1}, {ERR_NUMERIC, 1}, {ERR_FIT, 4}, {ERR_STOPPED, 75}, {-1000, 1},
                 {1, 1}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_int_equal(err_exit_code(table[i].err), table[i].exit_code);
}

static void test_error_messages(void **state)
{
    (void)state;
    char huge[5000];
    memset(huge, 'x', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    talk_begin();
    err_set_rank(0, 1);
    int code = err_set(ERR_FIT, "a/b.c", 12, "needs %d GiB", 21);
    err_set_rank(3, 8);
    err_set(ERR_IO, "a/b.c", 13, "lost");
    err_set_rank(0, 1);
    int was = err_quiet(1);
    err_set(ERR_ARG, "a/b.c", 14, "unheard");
    int on = err_quiet(0);
    err_set(ERR_ARG, "a/b.c", 15, "%s", huge);
    char *text = talk_end();
    assert_int_equal(code, ERR_FIT);
    assert_true(was == 0 && on == 1);
    static const char first[] = "glowq: error: needs 21 GiB [a/b.c:12]\nglowq: error: lost [rank 3, a/b.c:13]\n";
    assert_int_equal(strncmp(text, first, sizeof first - 1), 0);
    assert_null(strstr(text, "unheard"));
    assert_non_null(strstr(text, "xxx [a/b.c:15]\n")); /* cut, and still a whole line */
    assert_true(strlen(err_last()) > 1000 && strlen(err_last()) < sizeof huge);
    free(text);
}

static void *fail_beside(void *unused)
{
    (void)unused;
    err_set(ERR_IO, "a/b.c", 16, "cannot fsync");
    return NULL;
}

/* A thread that publishes is heard while another one asks quietly what a file is like, and doesn't change what that one found. */
static void test_quiet_is_one_threads(void **state)
{
    (void)state;
    pthread_t other;
    talk_begin();
    err_quiet(1);
    err_set(ERR_FORMAT, "a/b.c", 17, "not whole");
    assert_int_equal(pthread_create(&other, NULL, fail_beside, NULL), 0);
    pthread_join(other, NULL);
    err_quiet(0);
    char *text = talk_end();
    assert_string_equal(text, "glowq: error: cannot fsync [a/b.c:16]\n");
    assert_string_equal(err_last(), "not whole");
    free(text);
}

static void test_only_rank_0_talks(void **state)
{
    (void)state;
    talk_begin();
    log_init(0, 1);
    log_info("info %d", 1);
    log_warn("warning %d", 1);
    log_init(0, 0); /* --quiet */
    log_info("info %d", 2);
    log_warn("warning %d", 2);
    log_init(1, 1);
    log_info("info %d", 3);
    log_warn("warning %d", 3);
    log_init(0, 1);
    char *text = talk_end();
    assert_string_equal(text, "info 1\nglowq: warning: warning 1\nglowq: warning: warning 2\n");
    free(text);
}

static void steps(int64_t n_units, int64_t last)
{
    struct progress p;
    progress_begin(&p, "layers", n_units);
    for (int64_t i = 0; i <= last; i++)
        progress_update(&p, i, "note");
    progress_end(&p);
}

static int lines(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

static void test_progress_in_a_log(void **state)
{
    (void)state;
    const double start = now_s();
    log_init(0, 1);
    talk_begin();
    steps(3, 3);
    char *few = talk_end();
    talk_begin();
    steps(100000, 100000);
    char *many = talk_end();
    const double took = now_s() - start;
    talk_begin();
    steps(0, 2); /* nothing to do: nothing to say */
    log_init(0, 0);
    steps(3, 3);
    log_init(0, 1);
    char *none = talk_end();
    assert_true(lines(few) >= 1 && lines(few) <= 1 + (int)took); /* the last one, and one a second */
    assert_non_null(strstr(few, "layers 3/3"));
    assert_non_null(strstr(many, "layers 100000/100000"));
    assert_true(lines(many) <= 1 + (int)(took / 30)); /* the last one, and one per 30 s */
    assert_string_equal(none, "");
    free(few);
    free(many);
    free(none);
}

static int master = -1; /* of a pseudo-terminal */

/* On a terminal: a bar of one width, whatever is passed; the terminal here is a pseudo-terminal's far end. */
static void test_progress_on_a_terminal(void **state)
{
    (void)state;
    char seen[8192];
    assert_int_equal(grantpt(master), 0);
    assert_int_equal(unlockpt(master), 0);
    int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0);
    stderr_to(dup(terminal)); /* the far end stays open, so that what was written can be read after stderr is back */
    steps(4, 4);
    steps(2, 3); /* more units than promised must not overrun the bar */
    stderr_back();
    struct pollfd more = {.fd = master, .events = POLLIN};
    size_t n = 0;
    seen[0] = 0;
    while (!strstr(seen, "3/2") && poll(&more, 1, 20000) > 0) { /* the kernel hands it over piece by piece */
        const ssize_t k = read(master, seen + n, sizeof seen - 1 - n);
        if (k <= 0)
            break;
        n += (size_t)k;
        seen[n] = 0;
    }
    assert_non_null(strstr(seen, "[                              ] 0/4"));
    assert_non_null(strstr(seen, "[===============               ] 2/4"));
    assert_non_null(strstr(seen, "[==============================] 3/2"));
    close(terminal);
    close(master);
}

/* A run of its own, so that it can be skipped as one: 77. */
static int run_terminal(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_progress_on_a_terminal)};
    master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (master < 0) {
        printf("skipped: no pseudo-terminal here: %s\n", strerror(errno));
        return 77;
    }
    return cmocka_run_group_tests_name("terminal", tests, scratch_open, scratch_close);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "terminal") == 0)
        return run_terminal();
#define IN_SCRATCH(f) cmocka_unit_test_teardown(f, scratch_clear)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_json_is_strict),
        cmocka_unit_test(test_json_depth_is_bounded),
        cmocka_unit_test(test_json_members),
        IN_SCRATCH(test_json_write_and_read),
        IN_SCRATCH(test_file_read_and_pread),
        IN_SCRATCH(test_fifo_does_not_hang),
        IN_SCRATCH(test_publish_replaces_and_copies),
        IN_SCRATCH(test_failed_publish_leaves_nothing),
        IN_SCRATCH(test_make_dirs),
        IN_SCRATCH(test_hashes_are_the_published_ones),
        cmocka_unit_test(test_exit_codes),
        IN_SCRATCH(test_error_messages),
        IN_SCRATCH(test_quiet_is_one_threads),
        IN_SCRATCH(test_only_rank_0_talks),
        IN_SCRATCH(test_progress_in_a_log),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
