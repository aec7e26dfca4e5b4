/* SPDX-License-Identifier: Apache-2.0
 * Perplexity against independent PyTorch loops (golden/protocols.json, golden.jsonl of the shared models, examples/golden.json), the
 * divergence from a reference too (golden/comparisons.json), the same bits on any number of ranks and in any batch, and texts and
 * settings that can't be evaluated.
 * Arguments: device, then nothing (committed models), "data" (published models, data_help.h), "examples" (bundled models). */
#include "infer/evaluate.h"

#include "tests/data_help.h"
#include "tests/infer_help.h"
#include "tests/logits_help.h"

#include <math.h>

static const char tiny[] = "tests/golden/families/tp_cut", tiny_text[] = "tests/golden/text.txt";

/* ---- against the references ---- */

static enum protocol protocol_of(const char *name)
{
    for (int p = PROTOCOL_GPTQ; p <= PROTOCOL_WINDOWS; p++)
        if (strcmp(name, protocol_name((enum protocol)p)) == 0)
            return (enum protocol)p;
    fail_msg("unknown protocol %s", name);
    return PROTOCOL_GPTQ;
}

static const char *string_of(const json_t *entry, const char *key)
{
    const char *s = json_string_value(json_object_get(entry, key));
    assert_non_null(s);
    return s;
}

static int is_gpu(void)
{
    return strncmp(backend.name, "cuda", 4) == 0;
}

static double number_of(const json_t *entry, const char *key)
{
    assert_true(json_is_number(json_object_get(entry, key)));
    return json_number_value(json_object_get(entry, key));
}

static void evaluate_entry(struct comm *comm, const char *dir, const char *text_path, const json_t *entry,
                           int64_t batch, struct evaluation *out)
{
    struct model model;
    size_t n = 0;
    char *text = read_text(text_path, &n);
    const struct evaluate_options options = {.protocol = protocol_of(string_of(entry, "protocol")),
                                             .ctx = (int64_t)number_of(entry, "ctx"),
                                             .max_tokens = json_integer_value(json_object_get(entry, "max_tokens")),
                                             .print_nll = 1};
    model_on(comm, dir, batch < options.ctx ? options.ctx : batch, &model);
    assert_int_equal(evaluate(&model, text, (int64_t)n, &options, out), OK);
    assert_int_equal(out->ctx, options.ctx);
    model_close(&model);
    free(text);
}

/* Both are f32 forward passes with another order of summation: far inside 5 digits of the perplexity. A GPU sums in yet another
 * order, by other libraries: its perplexity is promised to 1e-4. */
static void assert_equals_reference(const struct evaluation *e, const json_t *want, const char *ids_key)
{
    if (world.rank == 0)
        print_message("%s ctx %d: perplexity %.7f, reference %.7f; stderr %.8f, reference %.8f\n",
                      string_of(want, "protocol"), (int)e->ctx, e->perplexity, number_of(want, "perplexity"),
                      e->nll_stderr, number_of(want, "stderr"));
    const double within = is_gpu() ? 1e-4 : 5e-6, errors_within = is_gpu() ? 1e-3 : 1e-4;
    assert_true(fabs(e->perplexity / number_of(want, "perplexity") - 1) < within);
    assert_true(fabs(e->nll - number_of(want, "nll")) < within);
    assert_true(fabs(e->nll_stderr / number_of(want, "stderr") - 1) < errors_within);
    assert_true(fabs(e->perplexity_stderr / (number_of(want, "perplexity") * number_of(want, "stderr")) - 1) <
                errors_within);
    assert_int_equal(e->n_tokens, (int64_t)number_of(want, "tokens"));
    assert_int_equal(e->n_windows, (int64_t)number_of(want, "windows"));
    assert_string_equal(e->text_sha256, string_of(want, "text_sha256"));
    assert_string_equal(e->ids_sha256, string_of(want, ids_key));
}

/* What is reported is made of the tokens' own values. */
static void assert_adds_up(const struct evaluation *e)
{
    double sum = 0;
    int64_t at = 0;
    for (int64_t w = 0; w < e->n_windows; w++) {
        double window = 0;
        for (int64_t i = 0; i < e->window_tokens[w]; i++)
            window += e->token_nll[at++];
        assert_true(fabs(window / (double)e->window_tokens[w] - e->window_nll[w]) < 1e-12);
        sum += window;
    }
    assert_int_equal(at, e->n_tokens);
    assert_true(fabs(sum / (double)at - e->nll) < 1e-12);
}

/* On a GPU, where a product's order of summation follows its shape: the same to 1e-3 a token. */
static void assert_same_bits(const struct evaluation *a, const struct evaluation *b)
{
    assert_true(a->n_tokens == b->n_tokens && a->n_windows == b->n_windows);
    assert_string_equal(a->ids_sha256, b->ids_sha256);
    if (is_gpu()) {
        for (int64_t i = 0; i < a->n_tokens; i++)
            assert_true(fabs(a->token_nll[i] - b->token_nll[i]) < 1e-3);
        return;
    }
    assert_memory_equal(a->token_nll, b->token_nll, (size_t)a->n_tokens * sizeof *a->token_nll);
    assert_memory_equal(a->window_nll, b->window_nll, (size_t)a->n_windows * sizeof *a->window_nll);
    assert_true(a->perplexity == b->perplexity && a->nll_stderr == b->nll_stderr);
}

/* Every entry of protocols.json whose files are in `where`, on all ranks; on the committed ones also alone and window by window. */
static void check_protocols(const char *where, const char *root)
{
    json_t *list = NULL;
    int n = 0;
    assert_int_equal(json_read(source_path("tests/golden/protocols.json"), 1 << 20, &list), OK);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        char dir[PATH_MAX], text[PATH_MAX];
        struct evaluation together, alone, single;
        if (strcmp(string_of(entry, "where"), where) != 0)
            continue;
        assert_int_equal(file_join(dir, sizeof dir, root, string_of(entry, "model")), OK);
        assert_int_equal(file_join(text, sizeof text, root, string_of(entry, "text")), OK);
        evaluate_entry(&world, dir, text, entry, 1024, &together);
        assert_equals_reference(&together, entry, "ids_sha256_i32le");
        assert_adds_up(&together);
        if (strcmp(where, "golden") == 0) {
            evaluate_entry(&world, dir, text, entry, 0, &single);
            assert_same_bits(&together, &single);
            evaluation_free(&single);
        }
        if (strcmp(where, "golden") == 0 && world.size > 1) {
            evaluate_entry(&self, dir, text, entry, 1024, &alone);
            assert_same_bits(&together, &alone);
            evaluation_free(&alone);
        }
        evaluation_free(&together);
        n++;
    }
    assert_true(n >= 6);
    json_decref(list);
}

static void test_protocols_on_committed_models(void **state)
{
    (void)state;
    char root[PATH_MAX];
    snprintf(root, sizeof root, "%s", source_path("tests/golden"));
    check_protocols("golden", root);
}

static void test_protocols_on_published_models(void **state)
{
    (void)state;
    char root[PATH_MAX];
    assert_true(data_path(root, ""));
    check_protocols("data", root);
}

/* One line of golden.jsonl: ids, NLL of every token, and the last position's logits. They are printed with 4 to 5 decimals. */
static void check_sentence(const json_t *entry, const char *dir)
{
    const double tolerance = 1e-3;
    const json_t *want_ids = json_object_get(entry, "ids"), *want_nll = json_object_get(entry, "token_nll");
    const json_t *top = json_object_get(entry, "last_top5"), *first8 = json_object_get(entry, "last_logits_first8");
    const char *text = string_of(entry, "text");
    struct model model;
    struct token_ids ids = {0};
    struct batch batch;
    struct kv_cache kv;
    struct mat hidden;
    int32_t blocks[64];
    double worst = 0;
    model_on(&world, dir, 512, &model);
    assert_int_equal(tokenizer_encode(model.tokenizer, text, strlen(text), TOKENIZE_ADD_BOS, &ids), OK);
    assert_int_equal(ids.n, json_array_size(want_ids));
    for (int64_t i = 0; i < ids.n; i++)
        assert_int_equal(ids.ids[i], json_integer_value(json_array_get(want_ids, (size_t)i)));
    const int64_t vocab = model.config.vocab_size, n_blocks = (ids.n + KV_BLOCK - 1) / KV_BLOCK;
    const struct range kv_heads = model.dec.shape.kv_heads;
    double *nll = malloc((size_t)ids.n * sizeof *nll);
    float *logits = malloc((size_t)(ids.n * vocab) * sizeof *logits), *last = logits + (ids.n - 1) * vocab;
    int32_t *target = calloc((size_t)ids.n, sizeof *target); /* the last position has none: 0, not looked at */
    memcpy(target, ids.ids + 1, (size_t)(ids.n - 1) * sizeof *target);
    assert_true(n_blocks <= 64);
    for (int b = 0; b < 64; b++)
        blocks[b] = b;
    assert_int_equal(batch_create(&backend, ids.n, 1, n_blocks, &batch), OK);
    assert_int_equal(kv_create(&backend, 1, n_blocks, (kv_heads.end - kv_heads.begin) * model.config.head_dim, &kv),
                     OK);
    batch_begin(&batch);
    assert_int_equal(batch_add(&batch, ids.ids, ids.n, 0, blocks, n_blocks, 0), OK);
    assert_int_equal(batch_end(&batch), OK);
    assert_int_equal(decoder_forward(&model.dec, &batch, &kv, &hidden), OK);
    assert_int_equal(decoder_nll(&model.dec, &batch, &hidden, target, nll), OK);
    assert_int_equal(whole_logits(&model.dec, &batch, &hidden, logits), OK);
    assert_int_equal(ids.n - 1, json_array_size(want_nll));
    for (int64_t i = 0; i + 1 < ids.n; i++)
        worst = fmax(worst, fabs(nll[i] - json_number_value(json_array_get(want_nll, (size_t)i))));
    assert_true(worst < tolerance);
    assert_true(json_array_size(top) == 5 && json_array_size(first8) == 8);
    for (size_t k = 0; world.rank == 0 && k < 5; k++) { /* the k-th of the reference is the k-th here */
        int64_t id = json_integer_value(json_array_get(json_array_get(top, k), 0)), above = 0;
        for (int64_t j = 0; j < vocab; j++)
            above += last[j] > last[id];
        assert_int_equal(above, k);
        assert_true(fabs(last[id] - json_number_value(json_array_get(json_array_get(top, k), 1))) < tolerance);
    }
    for (size_t k = 0; world.rank == 0 && k < 8; k++)
        assert_true(fabs(last[k] - json_number_value(json_array_get(first8, k))) < tolerance);
    batch_free(&batch);
    kv_free(&kv);
    free(nll);
    free(logits);
    free(target);
    free(ids.ids);
    model_close(&model);
}

static void test_sentences_of_published_models(void **state)
{
    (void)state;
    size_t n = 0;
    int lines = 0;
    char path[PATH_MAX], models[PATH_MAX], *save = NULL;
    assert_true(data_path(path, "models/golden.jsonl") && data_path(models, "models"));
    char *all = read_text(path, &n);
    for (char *line = strtok_r(all, "\n", &save); line; line = strtok_r(NULL, "\n", &save), lines++) {
        json_t *entry = NULL;
        char dir[PATH_MAX], name[64];
        assert_int_equal(json_parse(line, strlen(line), "golden.jsonl", &entry), OK);
        snprintf(name, sizeof name, "%s", string_of(entry, "model"));
        char *hf = strstr(name, "-hf"); /* the line says NAME-hf-f32, the folder is NAME-f32 */
        if (hf)
            memmove(hf, hf + 3, strlen(hf + 3) + 1);
        assert_int_equal(file_join(dir, sizeof dir, models, name), OK);
        check_sentence(entry, dir);
        json_decref(entry);
    }
    assert_true(lines >= 2);
    free(all);
}

static void check_bundled(const char *name)
{
    json_t *golden = NULL;
    char text[PATH_MAX], dir[PATH_MAX];
    assert_int_equal(json_read(source_path("examples/golden.json"), 16 << 20, &golden), OK);
    assert_int_equal(file_join(text, sizeof text, source_path("examples"), string_of(golden, "text")), OK);
    assert_int_equal(file_join(dir, sizeof dir, source_path("examples"), name), OK);
    const json_t *list = json_object_get(json_object_get(json_object_get(golden, "models"), name), "eval");
    assert_int_equal(json_array_size(list), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *want = json_array_get(list, i), *means = json_object_get(want, "window_nll");
        struct evaluation e;
        evaluate_entry(&world, dir, text, want, 2048, &e);
        assert_equals_reference(&e, want, "ids_sha256");
        assert_int_equal(e.n_windows, json_array_size(means));
        for (int64_t w = 0; w < e.n_windows; w++) {
            assert_true(fabs(e.window_nll[w] - json_number_value(json_array_get(means, (size_t)w))) < 1e-4);
            assert_int_equal(e.window_tokens[w],
                             json_integer_value(json_array_get(json_object_get(want, "window_tokens"), (size_t)w)));
        }
        evaluation_free(&e);
    }
    json_decref(golden);
}

static void test_bundled_models(void **state)
{
    (void)state;
    check_bundled("dense");
    check_bundled("moe");
}

/* ---- beside a reference ---- */

/* Rows of a tensor of the scratch folder's copy, times a power of two, which bf16 holds exactly. */
static void scale_rows(const json_t *change)
{
    char path[PATH_MAX];
    struct checkpoint *ck = NULL;
    assert_int_equal(checkpoint_open(scratch, &ck), OK);
    const struct tensor *t = checkpoint_find(ck, string_of(change, "tensor"));
    assert_true(t && t->dtype == DT_BF16);
    const int64_t width = t->n_dims > 1 ? t->shape[1] : 1, first = (int64_t)number_of(change, "first") * width;
    scratch_path(path, "model.safetensors");
    int fd = open(path, O_RDWR);
    for (int64_t i = 0; i < (int64_t)number_of(change, "n") * width; i++) {
        const off_t at = (off_t)(t->offset + (uint64_t)(first + i) * sizeof(uint16_t));
        uint16_t v;
        float value;
        assert_int_equal(pread(fd, &v, sizeof v, at), sizeof v);
        convert(&value, DT_F32, &v, DT_BF16, 1);
        value *= (float)number_of(change, "by");
        convert(&v, DT_BF16, &value, DT_F32, 1);
        assert_int_equal(pwrite(fd, &v, sizeof v, at), sizeof v);
    }
    assert_int_equal(close(fd), 0);
    checkpoint_close(ck);
}

static void open_reference(struct comm *comm, const char *dir, int64_t batch, struct model *reference)
{
    const struct model_options options = {.max_batch_tokens = batch, .no_tokenizer = 1};
    assert_int_equal(model_open(comm, dir, &options, reference), OK);
}

static void compare_entry(struct comm *comm, const char *root, const json_t *entry, int64_t batch,
                          struct evaluation *out)
{
    struct model model, reference;
    char dir[PATH_MAX], path[PATH_MAX];
    size_t n = 0;
    const json_t *change = json_object_get(entry, "change");
    const struct evaluate_options options = {.protocol = protocol_of(string_of(entry, "protocol")),
                                             .ctx = (int64_t)number_of(entry, "ctx"),
                                             .max_tokens = json_integer_value(json_object_get(entry, "max_tokens")),
                                             .print_nll = 1,
                                             .reference = &reference};
    assert_int_equal(file_join(path, sizeof path, root, string_of(entry, "text")), OK);
    char *text = read_text(path, &n);
    assert_int_equal(file_join(dir, sizeof dir, root, string_of(entry, "model")), OK);
    if (json_is_object(change)) {
        assert_string_equal(string_of(entry, "model"), "families/tp_cut");
        copy_tiny_model();
        scale_rows(change);
    }
    model_on(comm, json_is_object(change) ? scratch : dir, max_i64(batch, options.ctx), &model);
    assert_int_equal(file_join(dir, sizeof dir, root, string_of(entry, "reference")), OK);
    open_reference(comm, dir, max_i64(batch, options.ctx), &reference);
    assert_int_equal(evaluate(&model, text, (int64_t)n, &options, out), OK);
    model_close(&model);
    model_close(&reference);
    free(text);
}

/* Logits that are d apart move a KL by d times the deviation of log P / Q, which is about sqrt(2 KL). Two f32 passes are about 2e-6
 * apart: 1e-4 of a KL of 1e-3, and the less the larger it is. A GPU's libraries: ten times that. */
static void assert_equals_comparison(const struct evaluation *e, const json_t *want)
{
    const struct comparison *c = &e->reference;
    const json_t *windows = json_object_get(want, "window_kl");
    const double kl = number_of(want, "kl"), wide = is_gpu() ? 10 : 1, within = 2e-6 * wide * sqrt(2 * kl) + 1e-9;
    if (world.rank == 0)
        print_message("%s against %s: kl %.9f +- %.9f, reference %.9f +- %.9f\n", string_of(want, "model"),
                      string_of(want, "reference"), c->kl, c->kl_stderr, kl, number_of(want, "kl_stderr"));
    assert_int_equal(e->n_tokens, (int64_t)number_of(want, "tokens"));
    assert_int_equal(e->n_windows, (int64_t)number_of(want, "windows"));
    assert_true(fabs(c->kl - kl) < within);
    assert_true(fabs(c->kl_stderr - number_of(want, "kl_stderr")) < within);
    assert_true(fabs(e->nll - number_of(want, "nll")) < 5e-6 * wide);
    assert_true(fabs(c->nll - number_of(want, "reference_nll")) < 5e-6 * wide);
    assert_true(fabs(c->perplexity / exp(c->nll) - 1) < 1e-15);
    assert_true(fabs(c->nll_difference - number_of(want, "nll_difference")) < 5e-6 * wide);
    assert_true(fabs(c->nll_difference - (e->nll - c->nll)) < 1e-12);
    assert_true(fabs(c->nll_difference_stderr - number_of(want, "nll_difference_stderr")) < 5e-6 * wide);
    assert_int_equal(lrint(c->top1_agreement * (double)e->n_tokens), (int64_t)number_of(want, "agreements"));
    assert_int_equal(e->n_windows, json_array_size(windows));
    for (int64_t w = 0; w < e->n_windows; w++) {
        const double mean = json_number_value(json_array_get(windows, (size_t)w));
        assert_true(fabs(c->window_kl[w] - mean) < 1e-5 * wide * sqrt(2 * mean) + 1e-9);
    }
}

static void assert_same_comparison(const struct evaluation *a, const struct evaluation *b)
{
    const struct comparison *x = &a->reference, *y = &b->reference;
    assert_same_bits(a, b);
    assert_memory_equal(x->window_nll, y->window_nll, (size_t)a->n_windows * sizeof *x->window_nll);
    assert_memory_equal(x->window_kl, y->window_kl, (size_t)a->n_windows * sizeof *x->window_kl);
    assert_true(x->kl == y->kl && x->kl_stderr == y->kl_stderr && x->top1_agreement == y->top1_agreement);
    assert_true(x->nll_difference == y->nll_difference && x->nll_difference_stderr == y->nll_difference_stderr);
}

/* Every entry of comparisons.json of that folder, on all ranks; on the CPU also alone and window by window. */
static void check_comparisons(const char *where, const char *folder)
{
    json_t *list = NULL;
    char root[PATH_MAX];
    int n = 0;
    const int is_slow =
        strncmp(world.be->name, "cuda:sim", 8) == 0; /* then only the short one, whose models are closest */
    snprintf(root, sizeof root, "%s", source_path(folder));
    assert_int_equal(json_read(source_path("tests/golden/comparisons.json"), 1 << 20, &list), OK);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        struct evaluation together, other;
        if (strcmp(string_of(entry, "where"), where) != 0 || (is_slow && number_of(entry, "tokens") > 1000))
            continue;
        compare_entry(&world, root, entry, 1024, &together);
        assert_equals_comparison(&together, entry);
        if (!is_gpu()) {
            compare_entry(&world, root, entry, 0, &other);
            assert_same_comparison(&together, &other);
            evaluation_free(&other);
        }
        if (!is_gpu() && world.size > 1) {
            compare_entry(&self, root, entry, 1024, &other);
            assert_same_comparison(&together, &other);
            evaluation_free(&other);
        }
        evaluation_free(&together);
        n++;
    }
    assert_true(n >= 1);
    json_decref(list);
}

static void test_comparisons_of_committed_models(void **state)
{
    (void)state;
    check_comparisons("golden", "tests/golden");
}

static void test_comparisons_of_bundled_models(void **state)
{
    (void)state;
    check_comparisons("examples", "examples");
}

/* Nothing apart, to the bit; and what a model says by itself isn't touched by who is beside it. */
static void test_model_beside_itself(void **state)
{
    (void)state;
    struct evaluate_options options = {.protocol = PROTOCOL_LLAMACPP, .ctx = 64, .print_nll = 1};
    struct model model, reference;
    struct evaluation alone, beside;
    size_t n = 0;
    char *text = read_text(source_path(tiny_text), &n);
    model_on(&world, source_path(tiny), 256, &model);
    open_reference(&world, source_path(tiny), 192, &reference); /* batches of three windows, not four */
    assert_int_equal(evaluate(&model, text, (int64_t)n, &options, &alone), OK);
    assert_null(alone.reference.window_kl);
    options.reference = &reference;
    assert_int_equal(evaluate(&model, text, (int64_t)n, &options, &beside), OK);
    const struct comparison *c = &beside.reference;
    assert_same_bits(&alone, &beside);
    assert_true(c->kl == 0 && c->kl_stderr == 0 && c->top1_agreement == 1);
    assert_true(c->nll == beside.nll && c->nll_difference == 0 && c->nll_difference_stderr == 0);
    for (int64_t w = 0; w < beside.n_windows; w++)
        assert_true(c->window_kl[w] == 0 && c->window_nll[w] == beside.window_nll[w]);
    evaluation_free(&alone);
    evaluation_free(&beside);
    model_close(&reference);
    model_close(&model);
    free(text);
}

/* ---- what can't be evaluated ---- */

static void assert_refused(struct model *model, const char *text, struct evaluate_options options, int code,
                           const char *word)
{
    struct evaluation e;
    err_quiet(1);
    int err = evaluate(model, text, (int64_t)strlen(text), &options, &e);
    err_quiet(0);
    assert_int_equal(err, code);
    if (!strstr(err_last(), word))
        fail_msg("no \"%s\" in: %s", word, err_last());
    assert_true(!e.window_nll && !e.window_tokens && !e.token_nll);
    assert_true(!e.reference.window_nll && !e.reference.window_kl);
}

static void test_settings_out_of_range(void **state)
{
    (void)state;
    struct model model;
    size_t n = 0;
    char *text = read_text(source_path(tiny_text), &n);
    model_on(&world, source_path(tiny), 128, &model); /* 512 positions */
    for (int p = PROTOCOL_GPTQ; p <= PROTOCOL_WINDOWS; p++) {
        const enum protocol protocol = (enum protocol)p;
        assert_refused(&model, text, (struct evaluate_options){.protocol = protocol, .ctx = 3}, ERR_ARG, "--ctx 3");
        assert_refused(&model, text, (struct evaluate_options){.protocol = protocol, .ctx = 513}, ERR_ARG, "--ctx 513");
        assert_refused(&model, text, (struct evaluate_options){.protocol = protocol, .ctx = 129}, ERR_ARG, "128");
        assert_refused(&model, "", (struct evaluate_options){.protocol = protocol, .ctx = 64}, ERR_ARG, "0 tokens");
        assert_refused(&model, "ab\xff", (struct evaluate_options){.protocol = protocol, .ctx = 64}, ERR_FORMAT, "");
    }
    /* BOS and 63 ids are one window of 64; one id less is none */
    for (int p = PROTOCOL_GPTQ; p <= PROTOCOL_LLAMACPP; p++) {
        struct evaluate_options options = {.protocol = (enum protocol)p, .ctx = 64, .max_tokens = 63};
        struct evaluation e;
        assert_int_equal(evaluate(&model, text, (int64_t)n, &options, &e), OK);
        assert_int_equal(e.n_windows, 1);
        assert_int_equal(e.n_tokens, p == PROTOCOL_GPTQ ? 63 : 31);
        assert_true(isnan(e.nll_stderr)); /* one window says nothing about the spread */
        evaluation_free(&e);
        options.max_tokens = 62;
        assert_refused(&model, text, options, ERR_ARG, "at least 63");
    }
    model_close(&model);
    free(text);
}

static void test_shortest_windows(void **state)
{
    (void)state;
    struct model model;
    struct evaluation e;
    const struct evaluate_options options = {.protocol = PROTOCOL_WINDOWS, .ctx = 4, .max_tokens = 7};
    size_t n = 0;
    char *text = read_text(source_path(tiny_text), &n);
    model_on(&world, source_path(tiny), 128, &model);
    assert_int_equal(evaluate(&model, text, (int64_t)n, &options, &e), OK);
    assert_int_equal(e.n_windows, 3); /* 3 + 3 + 1 ids */
    assert_int_equal(e.n_tokens, 7);
    assert_int_equal(e.window_tokens[2], 1);
    assert_null(e.token_nll); /* not asked for */
    evaluation_free(&e);
    model_close(&model);
    free(text);
}

/* A NaN anywhere in what is scored ends the evaluation, also when it is in one row of the vocabulary that the text doesn't use. */
static void test_nan_is_an_error(void **state)
{
    (void)state;
    const struct evaluate_options options = {.protocol = PROTOCOL_WINDOWS, .ctx = 64, .max_tokens = 200};
    struct model model;
    size_t n = 0;
    char *text = read_text(source_path(tiny_text), &n);
    model_on(&world, source_path(tiny), 128, &model);
    poison_norm(&model);
    assert_refused(&model, text, options, ERR_NUMERIC, "not finite");
    model_close(&model);

    copy_tiny_model();
    struct token_ids ids = {0};
    model_on(&world, scratch, 128, &model);
    int64_t unused = model.config.vocab_size - 1;
    assert_int_equal(tokenizer_encode(model.tokenizer, text, n, TOKENIZE_ADD_BOS, &ids), OK);
    for (int64_t i = 0; i < ids.n && i <= 200; i++)
        if (ids.ids[i] == unused) {
            unused--;
            i = -1;
        }
    free(ids.ids);
    model_close(&model);
    poison_embedding_row(unused, 1);
    model_on(&world, scratch, 128, &model);
    assert_refused(&model, text, options, ERR_NUMERIC, "not finite");
    model_close(&model);
    free(text);
}

static void test_references_that_do_not_fit(void **state)
{
    (void)state;
    struct model model, reference;
    struct evaluate_options options = {
        .protocol = PROTOCOL_WINDOWS, .ctx = 64, .max_tokens = 200, .reference = &reference};
    size_t n = 0;
    char *text = read_text(source_path(tiny_text), &n);
    model_on(&world, source_path(tiny), 128, &model);
    open_reference(&world, source_path("tests/golden/families/qwen3"), 128, &reference);
    assert_refused(&model, text, options, ERR_ARG, "a vocabulary of 131 ids, the model one of 288");
    model_close(&reference);

    open_reference(&world, source_path(tiny), 100, &reference);
    options.ctx = 101;
    assert_refused(&model, text, options, ERR_ARG, "the batch of 100");
    reference.config.max_position = 63;
    options.ctx = 64;
    assert_refused(&model, text, options, ERR_ARG, "the reference takes 4 to 63");
    reference.config.max_position = 512;

    poison_norm(&reference);
    assert_refused(&model, text, options, ERR_NUMERIC, "the reference's mean");
    model_close(&reference);
    open_reference(&world, source_path(tiny), 128, &reference);
    poison_norm(&model);
    assert_refused(&model, text, options, ERR_NUMERIC, "the model computes NaN");
    model_close(&reference);
    model_close(&model);
    free(text);
}

static int tests(const char *which)
{
    const struct CMUnitTest committed[] = {
        cmocka_unit_test(test_protocols_on_committed_models),
        cmocka_unit_test_teardown(test_comparisons_of_committed_models, scratch_clear),
        cmocka_unit_test(test_model_beside_itself),
        cmocka_unit_test(test_settings_out_of_range),
        cmocka_unit_test(test_shortest_windows),
        cmocka_unit_test_teardown(test_nan_is_an_error, scratch_clear),
        cmocka_unit_test(test_references_that_do_not_fit),
    };
    const struct CMUnitTest published[] = {
        cmocka_unit_test(test_sentences_of_published_models),
        cmocka_unit_test(test_protocols_on_published_models),
    };
    const struct CMUnitTest bundled[] = {
        cmocka_unit_test(test_bundled_models),
        cmocka_unit_test(test_comparisons_of_bundled_models),
    };
    if (strcmp(which, "data") == 0) {
        char path[PATH_MAX];
        return data_path(path, "models") ? cmocka_run_group_tests(published, NULL, NULL) : SKIPPED;
    }
    if (strcmp(which, "examples") == 0)
        return cmocka_run_group_tests(bundled, NULL, NULL);
    return cmocka_run_group_tests(committed, scratch_open, scratch_close);
}

int main(int argc, char **argv)
{
    return run_ranks(tests, argc, argv);
}
