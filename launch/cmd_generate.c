/* SPDX-License-Identifier: Apache-2.0
 * glowq generate: a prompt continued, as text on stdout while it comes.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "infer/generate.h"
#include "launch/source.h"

#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("What to continue:"),
    OPT_REQUIRED("model", 'm', "DIR", "Hugging Face or .glowq folder"),
    OPT_REQUIRED("prompt", 'p', "TEXT", "text to continue"),
    OPT_FLAG("echo", 0, "print the prompt before the new text"),
    OPT_FLAG("no-correction", 0, ".glowq: leave the low-rank correction out (plain low-bit weights)"),
    OPT_HEADING("How:"),
    OPT_INT("max-tokens", 'n', "N", "128", 1, 1 << 24, "most new tokens"),
    OPT_REAL("temperature", 'T', "0", 0, 100, "0: always the most probable token"),
    OPT_INT("top-k", 0, "K", "0", 0, 1 << 24, "draw among the K most probable; 0: among all"),
    OPT_REAL("top-p", 0, "1", 0, 1, "draw among the most probable that together reach X"),
    OPT_INT("seed", 0, "N", "0", 0, 9007199254740992.0, "seed of the draws"),
    OPTIONS_COMPUTE,
    OPT_END,
};

static void on_text(void *ctx, const char *text, size_t n)
{
    (void)ctx;
    out_write(text, n);
    out_flush();
}

static json_t *ids_of(const struct token_ids *ids)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < ids->n; i++)
        json_array_append_new(list, json_integer(ids->ids[i]));
    return list;
}

static int print_json(const struct options *o, int n_ranks, const struct generation *g)
{
    double per_s = g->decode_s > 0 ? (double)g->out.n / g->decode_s : 0;
    /* a byte-level model can be stopped inside a character: what isn't UTF-8 can't be JSON text, the ids stay exact */
    json_t *text = json_stringn(g->text, g->n_text);
    return out_json(json_pack("{s:i,s:s,s:s,s:o,s:s,s:o,s:o,s:o,s:o,s:o,s:i}", "schema_version", JSON_SCHEMA_VERSION,
                              "model", options_string(o, "model"), "prompt", options_string(o, "prompt"), "text",
                              text ? text : json_null(), "finish", g->finish, "prompt_ids", ids_of(&g->prompt), "ids",
                              ids_of(&g->out), "prefill_s", json_number(g->prefill_s), "decode_s",
                              json_number(g->decode_s), "tokens_per_s", json_number(per_s), "n_ranks", n_ranks));
}

static int run(struct comm *comm, const struct options *o)
{
    const int64_t batch = 512; /* rows of a prefill step */
    int err = OK;
    struct backend be = {0};
    struct model model = {0};
    struct generation g = {0};
    const int json = options_flag(o, "json");
    const char *prompt = options_string(o, "prompt");
    const struct generate_options how = {
        .max_tokens = options_int(o, "max-tokens"),
        .temperature = options_real(o, "temperature"),
        .top_k = options_int(o, "top-k"),
        .top_p = options_real(o, "top-p"),
        .seed = (uint64_t)options_int(o, "seed"),
        .on_text = json ? NULL : on_text,
    };
    /* no token stands for less than one byte of the prompt; 2 more for BOS and a prefix */
    const struct model_options load = {.no_correction = options_flag(o, "no-correction"),
                                       .max_batch_tokens = batch,
                                       .kv_tokens = (int64_t)strlen(prompt) + 2 + how.max_tokens};
    TRY(source_find(comm, o, 0));
    TRY(open_backend(comm, o, &be));
    TRY(model_open(comm, options_string(o, "model"), &load, &model));
    if (!json && options_flag(o, "echo") && comm->rank == 0)
        out_print("%s", prompt);
    TRY(generate(&model, prompt, &how, &g));
    if (comm->rank != 0)
        goto out;
    if (json)
        TRY(print_json(o, comm->size, &g));
    else
        out_write("\n", 1);
    out_flush(); /* on a terminal what follows belongs on a line of its own */
    log_info("%lld prompt token%s in %.2f s; %lld new token%s in %.2f s, %.1f a second; finish: %s",
             (long long)g.prompt.n, g.prompt.n == 1 ? "" : "s", g.prefill_s, (long long)g.out.n,
             g.out.n == 1 ? "" : "s", g.decode_s, g.decode_s > 0 ? (double)g.out.n / g.decode_s : 0, g.finish);
out:
    generation_free(&g);
    model_close(&model);
    backend_close(&be);
    comm->be = NULL;
    return err;
}

const struct command command_generate = {
    .name = "generate",
    .summary = "continue a prompt",
    .about =
        "Continues a prompt token by token until an end-of-sequence id of the model, --max-tokens, or the end of the "
        "model's context. Text goes to standard output as it comes.",
    .examples = "Examples:\n"
                "  glowq generate --model llama.glowq --prompt 'The harbour was'\n"
                "  mpirun -n 2 glowq generate -m llama -p 'Once upon a time' -n 200 \\\n"
                "      -T 0.8 --top-p 0.95 --seed 7\n",
    .options = table,
    .run = run,
};
