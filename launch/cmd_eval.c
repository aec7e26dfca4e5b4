/* SPDX-License-Identifier: Apache-2.0
 * glowq eval: perplexity of a text, and how far a model's predictions are from a reference's. Definitions: infer/evaluate.h.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "infer/evaluate.h"
#include "launch/source.h"

#include <stdlib.h>

static const struct option_spec table[] = {
    OPT_HEADING("What to evaluate:"),
    OPT_STRING("model", 'm', "DIR", "Hugging Face or .glowq folder"),
    OPT_STRING("reference", 0, "DIR",
               "Hugging Face or .glowq folder to compare with, token by token: KL divergence, top-1 agreement"),
    OPT_LIST("text", 0, "FILE", "UTF-8 text; several are joined byte by byte"),
    OPT_FLAG("no-correction", 0, ".glowq: leave the low-rank correction out (plain low-bit weights)"),
    OPTIONS_SYNTHETIC,
    OPTIONS_SYNTHETIC_FORMAT,
    OPT_HEADING("How:"),
    OPT_CHOICE("protocol", 'p', "gptq|llamacpp|windows", "gptq",
               "gptq: windows of --ctx, every next token scored; llamacpp: the second half of each chunk scored; "
               "windows: BOS before "
               "each window, its partial last one too"),
    OPT_INT("ctx", 'l', "N", "0", 0, 1 << 24, "tokens per window; 0: the protocol's own (2048, 512, 256)"),
    OPT_INT("max-tokens", 'n', "N", "0", 0, 9007199254740992.0,
            "use the first N tokens of the text; 0: all (--synthetic: four windows)"),
    OPT_FLAG("per-token-nll", 0, "with --json: the negative log-likelihood of every scored token"),
    OPTIONS_COMPUTE,
    OPT_END,
};

static int check(struct options *o)
{
    int n_texts = 0;
    if (source_check(o) != OK)
        return ERR_ARG;
    options_list(o, "text", &n_texts);
    if (n_texts == 0 && !options_string(o, "synthetic"))
        return options_refuse(o, "missing --text FILE");
    if (options_string(o, "reference") && options_string(o, "synthetic"))
        return options_refuse(o, "--reference goes with --model: a synthetic model was made from none");
    if (n_texts > 0 && options_string(o, "synthetic"))
        return options_refuse(o, "--text goes with --model: a synthetic model has no tokenizer");
    return OK;
}

static json_t *array_of(const double *v, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < n; i++)
        json_array_append_new(list, json_number(v[i]));
    return list;
}

static json_t *reference_json(const struct options *o, const struct evaluation *e)
{
    const struct comparison *c = &e->reference;
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "model", options_string(o, "reference"), "perplexity",
                     json_number(c->perplexity), "nll", json_number(c->nll), "nll_difference",
                     json_number(c->nll_difference), "nll_difference_stderr", json_number(c->nll_difference_stderr),
                     "kl", json_number(c->kl), "kl_stderr", json_number(c->kl_stderr), "top1_agreement",
                     json_number(c->top1_agreement), "window_nll", array_of(c->window_nll, e->n_windows), "window_kl",
                     array_of(c->window_kl, e->n_windows));
}

static int print_json(const struct options *o, int n_ranks, const struct evaluation *e)
{
    json_t *tokens = json_array();
    for (int64_t i = 0; tokens && i < e->n_windows; i++)
        json_array_append_new(tokens, json_integer(e->window_tokens[i]));
    json_t *page = json_pack(
        "{s:i,s:s,s:b,s:s,s:I,s:o,s:o,s:o,s:o,s:I,s:I,s:s,s:s,s:o,s:i,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION,
        "model", source_name(o), "correction", !options_flag(o, "no-correction"), "protocol",
        options_string(o, "protocol"), "ctx", (json_int_t)e->ctx, "perplexity", json_number(e->perplexity),
        "perplexity_stderr", json_number(e->perplexity_stderr), "nll", json_number(e->nll), "nll_stderr",
        json_number(e->nll_stderr), "n_tokens", (json_int_t)e->n_tokens, "n_windows", (json_int_t)e->n_windows,
        "text_sha256", e->text_sha256, "ids_sha256", e->ids_sha256, "seconds", json_number(e->seconds), "n_ranks",
        n_ranks, "window_nll", array_of(e->window_nll, e->n_windows), "window_tokens", tokens);
    if (page && e->token_nll)
        json_object_set_new(page, "token_nll", array_of(e->token_nll, e->n_tokens));
    if (page && e->reference.window_kl)
        json_object_set_new(page, "reference", reference_json(o, e));
    return out_json(page);
}

static void print_comparison(const struct options *o, const struct evaluation *e)
{
    const struct comparison *c = &e->reference;
    char difference[32] = "", kl[32] = "";
    if (e->n_windows > 1) {
        snprintf(difference, sizeof difference, " +- %.6f", c->nll_difference_stderr);
        snprintf(kl, sizeof kl, " +- %.6f", c->kl_stderr);
    }
    out_print("reference   %s: perplexity %.5f, nll %.6f\n", options_string(o, "reference"), c->perplexity, c->nll);
    out_print("difference  nll %+.6f%s\n", c->nll_difference, difference);
    out_print("divergence  %.6f%s nats a token, KL(reference || model)\n", c->kl, kl);
    out_print("top-1       %.3f%% of tokens: the same id is most probable to both\n", 100 * c->top1_agreement);
}

static void print_text(const struct options *o, const struct evaluation *e)
{
    if (e->n_windows > 1) {
        out_print("perplexity  %.5f +- %.5f\n", e->perplexity, e->perplexity_stderr);
        out_print("nll         %.6f +- %.6f\n", e->nll, e->nll_stderr);
    } else {
        out_print("perplexity  %.5f (one window: no standard error)\n", e->perplexity);
        out_print("nll         %.6f\n", e->nll);
    }
    if (e->reference.window_kl)
        print_comparison(o, e);
    out_print("protocol    %s, ctx %lld: %lld tokens scored in %lld window%s\n", options_string(o, "protocol"),
              (long long)e->ctx, (long long)e->n_tokens, (long long)e->n_windows, e->n_windows == 1 ? "" : "s");
    out_print("text        sha256 %s\n", e->text_sha256);
    out_print("ids         sha256 %s\n", e->ids_sha256);
    out_print("time        %.2f s, %.0f tokens/s\n", e->seconds, e->seconds > 0 ? (double)e->n_tokens / e->seconds : 0);
}

/* Ids drawn from the seed. Their NLL says nothing about a language; it is a check value, the same on any number of ranks. */
static int evaluate_made_up(struct model *model, const struct evaluate_options *how, uint64_t seed,
                            struct evaluation *e)
{
    int err = OK;
    const int64_t ctx = how->ctx > 0 ? how->ctx : min_i64(2048, model->config.max_position);
    struct token_ids ids = {.n = how->max_tokens > 0 ? how->max_tokens : 4 * ctx};
    if (!(ids.ids = malloc((size_t)ids.n * sizeof *ids.ids)))
        FAIL(ERR_NOMEM, "%lld token ids", (long long)ids.n);
    synthetic_ids(seed, model->config.vocab_size, ids.n, ids.ids);
    TRY(evaluate_ids(model, &ids, how, e));
out:
    free(ids.ids);
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    const int64_t least_batch = 2048; /* rows: short windows share a batch, so that products are large */
    int err = OK, n_texts = 0;
    struct backend be = {0};
    struct model model = {0}, reference = {0};
    struct evaluation e = {0};
    char *text = NULL;
    size_t n_bytes = 0;
    const char *const *paths = options_list(o, "text", &n_texts);
    struct evaluate_options how = {
        .protocol = (enum protocol)options_choice(o, "protocol"),
        .ctx = options_int(o, "ctx"),
        .max_tokens = options_int(o, "max-tokens"),
        .print_nll = options_flag(o, "per-token-nll"),
    };
    const int64_t batch = how.ctx > least_batch ? how.ctx : least_batch;
    struct model_options load = {.no_correction = options_flag(o, "no-correction"),
                                 .max_batch_tokens = batch,
                                 .kv_layers = 1,
                                 .kv_tokens = batch};
    source_format(o, &load);
    TRY(source_find(comm, o, 0));
    if (n_texts > 0)
        TRY(read_texts(comm, paths, n_texts, &text, &n_bytes));
    TRY(open_backend(comm, o, &be));
    TRY(source_open(comm, o, &load, &model, &reference));
    how.reference = options_string(o, "reference") ? &reference : NULL;
    if (n_texts > 0)
        TRY(evaluate(&model, text, (int64_t)n_bytes, &how, &e));
    else
        TRY(evaluate_made_up(&model, &how, load.synthetic.seed, &e));
    if (comm->rank == 0 && options_flag(o, "json"))
        TRY(print_json(o, comm->size, &e));
    else if (comm->rank == 0)
        print_text(o, &e);
out:
    evaluation_free(&e);
    model_close(&reference);
    model_close(&model);
    backend_close(&be);
    comm->be = NULL;
    free(text);
    return err;
}

const struct command command_eval = {
    .name = "eval",
    .summary = "perplexity of a text, and divergence from a reference",
    .about =
        "Perplexity of a text under one of three exact protocols, on a Hugging Face or a .glowq folder, "
        "tensor-parallel over the ranks. The digits are the same on 1, 2, 4 and 8 ranks. With --reference: how far "
        "the model's predictions are from another's, normally the one that it was made from.",
    .examples = "Examples:\n"
                "  glowq eval --model llama --text wiki.test.raw\n"
                "  mpirun -n 2 glowq eval -m llama.glowq --text wiki.test.raw \\\n"
                "      --no-correction --json\n"
                "  glowq eval -m llama.glowq --reference llama --text wiki.test.raw\n"
                "  glowq eval -m stories --text stories.txt \\\n"
                "      --protocol windows --ctx 256 --max-tokens 40000\n"
                "  glowq eval --synthetic examples/shapes/llama-3-8b.json --layers 2 \\\n"
                "      --bits 4 --rank 64\n",
    .options = table,
    .check = check,
    .run = run,
};
