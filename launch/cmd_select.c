/* SPDX-License-Identifier: Apache-2.0
 * glowq select: which groups' corrections pay (infer/select.h), and a .glowq folder with these alone.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "infer/select.h"
#include "launch/source.h"
#include "model/manifest.h"
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("What to choose from:"),
    OPT_REQUIRED("model", 'm', "DIR", ".glowq folder"),
    OPT_REQUIRED_LIST("text", 0, "FILE", "UTF-8 text that the losses are measured on; several are joined byte by byte"),
    OPT_STRING(
        "reference", 0, "DIR",
        "folder of the 16-bit model: losses are KL divergences from it, which tell far smaller differences apart "
        "than the text's own likelihood does (default: the likelihood)"),
    OPT_HEADING("How:"),
    OPT_STRING(
        "keep", 'k', "50%|SIZE|elbow",
        "bytes of the corrections to keep: a share, a size like 300M, or up to where the sum of the scores bends "
        "(then of one --score, sensitivity unless named) (default: 50%)"),
    OPT_CHOICE(
        "score", 0, "best|sensitivity|energy|captured|order", "best",
        "what puts groups in order: how far the loss falls with the group alone, a byte; captured share of its "
        "error; captured error a byte; first layers first; best: the one of them whose choice has the least loss"),
    OPT_INT("points", 0, "N", "4", 1, 1000, "points of each score's curve: every Nth of the bytes is measured too"),
    OPT_INT("ctx", 'l', "N", "0", 0, 1 << 24, "tokens per window; 0: 2048, or what the model takes"),
    OPT_INT("max-tokens", 'n', "N", "16384", 0, 9007199254740992.0, "use the first N tokens of the text; 0: all"),
    OPT_HEADING("Output:"),
    OPT_STRING("out", 'o', "DIR",
               "write the choice there, as a .glowq folder of its own (default: nothing is written)"),
    OPTIONS_COMPUTE,
    OPT_END,
};

/* 0: not a value of --keep. */
static int keep_parse(const struct options *o, struct select_options *how)
{
    const char *text = options_string(o, "keep");
    char *end = NULL;
    how->bytes = -1;
    how->share = text ? strtod(text, &end) / 100 : 0.5;
    how->elbow = text && strcmp(text, "elbow") == 0;
    if (!text || how->elbow)
        return 1;
    if (end != text && strcmp(end, "%") == 0)
        return how->share >= 0 && how->share <= 1;
    how->bytes = (int64_t)parse_bytes(text);
    return how->bytes > 0;
}

static int check(struct options *o)
{
    struct select_options how;
    const char *score = options_string(o, "score");
    if (!keep_parse(o, &how))
        return options_refuse(o, "--keep \"%s\": give a share like 50%%, a size like 300M, or elbow",
                              options_string(o, "keep"));
    if (how.elbow && strcmp(score, "order") == 0)
        return options_refuse(o, "--keep elbow: the order of the layers has none; give another --score");
    return OK;
}

static void scores_of(const struct options *o, struct select_options *how)
{
    const char *asked = options_string(o, "score");
    for (int score = 0; score < N_SCORES; score++)
        how->scores[score] = strcmp(asked, score_name((enum score)score)) == 0 || strcmp(asked, "best") == 0;
    if (how->elbow && strcmp(asked, "best") == 0) /* sums of different things bend at different places */
        for (int score = 0; score < N_SCORES; score++)
            how->scores[score] = score == SCORE_SENSITIVITY;
}

static const char *point_name(const struct select_point *point)
{
    return point->score < 0 ? "-" : score_name((enum score)point->score);
}

static json_t *point_json(const struct select_point *p)
{
    json_t *score = p->score < 0 ? json_null() : json_string(score_name((enum score)p->score));
    return json_pack("{s:o,s:I,s:I,s:o,s:o,s:o,s:o}", "score", score, "n_groups", (json_int_t)p->n_units,
                     "factor_bytes", (json_int_t)p->bytes, "loss", json_number(p->loss), "loss_stderr",
                     json_number(p->loss_stderr), "above", json_number(p->above), "above_stderr",
                     json_number(p->above_stderr));
}

static const char *loss_name(const struct options *o)
{
    return options_string(o, "reference") ? "kl" : "nll";
}

static int print_json(const struct options *o, int n_ranks, double seconds, const struct selection *s)
{
    json_t *groups = json_array(), *curve = json_array();
    for (int64_t i = 0; i < s->n_units; i++) {
        const struct select_unit *u = &s->units[i];
        json_array_append_new(groups, json_pack("{s:I,s:s,s:I,s:I,s:o,s:o,s:o,s:b}", "layer", (json_int_t)u->layer,
                                                "group", unit_name(u->unit), "rank", (json_int_t)u->rank,
                                                "factor_bytes", (json_int_t)u->bytes, "energy", json_number(u->energy),
                                                "captured", json_number(u->captured), "fall", json_number(u->fall),
                                                "kept", s->layers[u->layer].has[u->unit]));
    }
    for (int64_t i = 0; i < s->n_points; i++)
        json_array_append_new(curve, point_json(&s->points[i]));
    return out_json(json_pack("{s:i,s:s,s:s?,s:s?,s:s,s:s,s:o,s:o,s:o,s:I,s:I,s:I,s:o,s:i}", "schema_version",
                              JSON_SCHEMA_VERSION, "model", source_name(o), "out", options_string(o, "out"),
                              "reference_model", options_string(o, "reference"), "loss", loss_name(o), "text_sha256",
                              s->text_sha256, "groups", groups, "curve", curve, "chosen", point_json(&s->chosen), "ctx",
                              (json_int_t)s->ctx, "n_tokens", (json_int_t)s->n_tokens, "n_windows",
                              (json_int_t)s->n_windows, "seconds", json_number(seconds), "n_ranks", n_ranks));
}

static void print_point(const struct selection *s, const struct select_point *p)
{
    char bytes[BYTES_TEXT];
    out_print("%4.0f %%  %9s  %6lld  %-11s  %.6f", 100 * (double)p->bytes / (double)s->bytes,
              format_bytes((double)p->bytes, bytes, sizeof bytes), (long long)p->n_units, point_name(p), p->loss);
    if (p->n_units < s->n_units && s->n_windows > 1)
        out_print("  %+.6f +- %.6f", p->above, p->above_stderr);
    out_print("\n");
}

/* Runs of layers whose units are chosen alike, a line each. */
static void print_layers(const struct selection *s)
{
    int64_t begin = 0;
    for (int64_t l = 1; l <= s->n_layers; l++) {
        if (l < s->n_layers && memcmp(&s->layers[l], &s->layers[begin], sizeof *s->layers) == 0)
            continue;
        out_print(l - begin > 1 ? "layers %lld-%lld:" : "layer %lld:", (long long)begin, (long long)l - 1);
        int n = 0;
        for (int unit = 0; unit < N_UNITS; unit++)
            if (s->layers[begin].has[unit]) {
                out_print(" %s", unit_name(unit));
                n++;
            }
        out_print(n == 0 ? " none\n" : "\n");
        begin = l;
    }
}

static void print_text(const struct options *o, const struct selection *s)
{
    char bytes[BYTES_TEXT];
    out_print("loss: %s of %lld tokens in %lld windows\n", loss_name(o), (long long)s->n_tokens,
              (long long)s->n_windows);
    out_print("  kept      bytes  groups  score        loss      above all groups\n");
    for (int64_t i = 0; i < s->n_points; i++)
        print_point(s, &s->points[i]);
    out_print("chosen by %s: %lld of %lld groups, %s\n", point_name(&s->chosen), (long long)s->chosen.n_units,
              (long long)s->n_units, format_bytes((double)s->chosen.bytes, bytes, sizeof bytes));
    print_layers(s);
}

/* What the paths invite to get wrong, said before anything is measured. */
static int check_paths(const char *from, const char *out)
{
    int err = OK;
    if (checkpoint_is_in(from))
        FAIL(ERR_ARG,
             "--model %s: a checkpoint, which has no correction: give the .glowq folder that calibrate made of it",
             from);
    if (out && checkpoint_is_in(out)) /* it would get a config.json and tokenizer of ours */
        FAIL(ERR_ARG, "--out %s: a checkpoint's folder; give one of its own to the result", out);
    if (out && file_is_in(out, "manifest.json"))
        FAIL(ERR_ARG, "--out %s: stands there already%s: give another --out", out,
             strcmp(from, out) == 0 ? ", and is what is read" : "");
out:
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    const int64_t least_batch = 2048; /* rows: short windows share a batch, so that products are large */
    int err = OK, n_texts = 0, lock = -1;
    struct backend be = {0};
    struct model model = {0}, reference = {0};
    struct selection s = {0};
    json_t *manifest = NULL;
    char *text = NULL;
    size_t n_bytes = 0;
    const char *from = options_string(o, "model"), *out = options_string(o, "out");
    const char *const *paths = options_list(o, "text", &n_texts);
    struct select_options how = {.evaluate = {.protocol = PROTOCOL_GPTQ,
                                              .ctx = options_int(o, "ctx"),
                                              .max_tokens = options_int(o, "max-tokens"),
                                              .is_part = 1},
                                 .n_points = options_int(o, "points")};
    const int64_t batch = max_i64(how.evaluate.ctx, least_batch);
    const struct model_options load = {.max_batch_tokens = batch, .kv_layers = 1, .kv_tokens = batch};
    const double start = now_s();
    keep_parse(o, &how); /* check has seen it */
    scores_of(o, &how);
    TRY(source_find(comm, o, 0));
    const int was_quiet = err_quiet(1);
    err = check_paths(from, out);
    err = err ? err : manifest_read(from, &manifest);
    TRY(comm_agree_alike(comm, err, was_quiet));
    TRY(comm_agree(comm, out && comm->rank == 0 ? store_lock(out, &lock) : OK));
    TRY(read_texts(comm, paths, n_texts, &text, &n_bytes));
    TRY(open_backend(comm, o, &be));
    TRY(source_open(comm, o, &load, &model, &reference));
    how.evaluate.reference = options_string(o, "reference") ? &reference : NULL;
    const int still_quiet = err_quiet(1);
    err = select_units(manifest, model.config.n_layers, &s);
    TRY(comm_agree_alike(comm, err, still_quiet));
    TRY(select_run(&model, text, (int64_t)n_bytes, &how, &s));
    if (out)
        TRY(selection_write(comm, from, manifest, &model.config, &s, out));
    if (comm->rank == 0 && options_flag(o, "json"))
        TRY(print_json(o, comm->size, now_s() - start, &s));
    else if (comm->rank == 0)
        print_text(o, &s);
out:
    store_unlock(out, lock);
    selection_free(&s);
    json_decref(manifest);
    model_close(&reference);
    model_close(&model);
    backend_close(&be);
    comm->be = NULL;
    free(text);
    return err;
}

const struct command command_select = {
    .name = "select",
    .summary = "keep the corrections that pay, leave the others out",
    .about =
        "Measures on a text which groups' corrections lower the loss most for their bytes, prints what each score's "
        "order of them leads to, and with --out writes the best choice of the wanted size as a .glowq folder, which "
        "is smaller and has less to compute. Choose on one text, evaluate on another.",
    .examples = "Examples:\n"
                "  glowq select --model llama.glowq --reference llama --text calibration.txt \\\n"
                "      --out llama-s.glowq\n"
                "  glowq select -m llama.glowq --text calibration.txt --keep 200M --score energy\n"
                "  mpirun -n 4 glowq select -m llama.glowq --text calibration.txt \\\n"
                "      --keep elbow --out llama-s.glowq\n",
    .options = table,
    .check = check,
    .run = run,
};
