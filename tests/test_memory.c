/* SPDX-License-Identifier: Apache-2.0
 * Memory of a calibration at real size: two decoder layers of Llama-2-7B's shape, random weights, written here.
 *
 * Bound, a rank: (peak RSS - RSS after start-up) <= 1.2 x (2 layers' weights as stored + this layer's largest E slice in f32 +
 * 8-byte Sigma of the four groups + one f32 leaf + hidden states T d 4 / R + two microbatches' activations). So nothing grows
 * with the number of layers, and no copy of the checkpoint is held. */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "calib/calibrate.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { D = 4096, FF = 11008, HEADS = 32, LAYERS = 2, VOCAB = 288, BLOCK = 2048, SEQ = 256, SAMPLES = 16 };

static const struct {
    const char *name;
    int64_t rows, cols; /* cols 0: a vector */
} layer_tensors[] = {
    {"input_layernorm", D, 0},  {"mlp.down_proj", D, FF},           {"mlp.gate_proj", FF, D},
    {"mlp.up_proj", FF, D},     {"post_attention_layernorm", D, 0}, {"self_attn.k_proj", D, D},
    {"self_attn.o_proj", D, D}, {"self_attn.q_proj", D, D},         {"self_attn.v_proj", D, D},
};

/* bf16 weights of about N(0, 1 / d): the sum of two uniform bytes; norms are near 1. A few channels are larger. */
static void fill(uint16_t *row, int64_t n, int is_norm, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        float u = (float)(int)((*state >> 40 & 255) + (*state >> 48 & 255)) / 255.0f - 1.0f;
        row[i] = f32_to_bf16(is_norm ? 1.0f + 0.1f * u : 0.038f * u * (i % 512 == 7 ? 4.0f : 1.0f));
    }
}

/* Header and data in one sweep over the same list, so that they can't disagree. */
static int write_checkpoint(const char *dir)
{
    int err = OK;
    char path[PATH_MAX];
    char *header = malloc(1 << 16);
    uint16_t *row = malloc(FF * sizeof *row);
    uint64_t offset = 0, state = 1;
    size_t n = 0;
    FILE *f = NULL;
    if (!header || !row)
        FAIL(ERR_NOMEM, "synthetic checkpoint");
    TRY(file_join(path, sizeof path, dir, "model.safetensors"));
    n += (size_t)sprintf(header + n, "{");
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            n--; /* the last comma */
            n += (size_t)sprintf(header + n, "}");
            uint64_t length = n;
            if (!(f = fopen(path, "wb")) || fwrite(&length, 8, 1, f) != 1 || fwrite(header, 1, n, f) != n)
                FAIL(ERR_IO, "cannot write %s", path);
        }
        for (int i = 0; i < 2 + LAYERS * (int)(sizeof layer_tensors / sizeof layer_tensors[0]); i++) {
            char name[128];
            const int in_layer = i - 2, count = sizeof layer_tensors / sizeof layer_tensors[0];
            int64_t rows = VOCAB, cols = D;
            if (i == 0)
                snprintf(name, sizeof name, "model.embed_tokens.weight");
            else if (i == 1)
                snprintf(name, sizeof name, "model.norm.weight"), rows = D, cols = 0;
            else
                snprintf(name, sizeof name, "model.layers.%d.%s.weight", in_layer / count,
                         layer_tensors[in_layer % count].name),
                    rows = layer_tensors[in_layer % count].rows, cols = layer_tensors[in_layer % count].cols;
            const uint64_t bytes = (uint64_t)(rows * (cols ? cols : 1)) * 2;
            if (pass == 0) {
                n +=
                    (size_t)(cols
                                 ? sprintf(header + n,
                                           "\"%s\":{\"dtype\":\"BF16\",\"shape\":[%lld,%lld],\"data_offsets\":[%llu,%"
                                           "llu]},",
                                           name, (long long)rows, (long long)cols, (unsigned long long)offset,
                                           (unsigned long long)(offset + bytes))
                                 : sprintf(header + n,
                                           "\"%s\":{\"dtype\":\"BF16\",\"shape\":[%lld],\"data_offsets\":[%llu,%llu]},",
                                           name, (long long)rows, (unsigned long long)offset,
                                           (unsigned long long)(offset + bytes)));
                offset += bytes;
                continue;
            }
            for (int64_t r = 0; r < (cols ? rows : 1); r++) {
                const int64_t width = cols ? cols : rows;
                fill(row, width, !cols, &state);
                if (fwrite(row, sizeof *row, (size_t)width, f) != (size_t)width)
                    FAIL(ERR_IO, "cannot write %s", path);
            }
        }
    }
out:
    if (f && fclose(f) != 0 && !err)
        err = ERR_IO;
    free(header);
    free(row);
    return err;
}

static int write_model(const char *dir)
{
    int err = OK;
    char from[PATH_MAX], to[PATH_MAX], text[SAMPLES * SEQ * 4];
    char config[512];
    static const char *const copied[] = {"tokenizer.json", "tokenizer_config.json"};
    snprintf(
        config, sizeof config,
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%"
        "d,"
        "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"vocab_size\":%d,"
        "\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}",
        D, FF, LAYERS, HEADS, HEADS, VOCAB);
    TRY(file_make_dirs(dir));
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/tests/golden/families/tp_cut/%s", getenv("GLOWQ_SOURCE_DIR"), copied[i]);
        TRY(file_join(to, sizeof to, dir, copied[i]));
        if (file_exists(from))
            TRY(file_copy(from, to));
    }
    TRY(file_join(to, sizeof to, dir, "config.json"));
    TRY(file_publish(to, config, strlen(config)));
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + (i * i / 3 + i) % 26);
    TRY(file_join(to, sizeof to, dir, "text.txt"));
    TRY(file_publish(to, text, sizeof text));
    TRY(write_checkpoint(dir));
out:
    return err;
}

static int64_t rss_bytes(void)
{
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return (int64_t)resident * sysconf(_SC_PAGESIZE);
}

static double bound_bytes(int n_ranks)
{
    const double d = D, ff = FF, t = SAMPLES * SEQ;
    const double weights = 2 * (4 * d * d + 3 * d * ff) * 2;
    const double e_slice = 2 * ff * d / n_ranks * 4;
    const double sigma = (3 * d * d + ff * ff) * 8, leaf = ff * ff * 4, hidden = t * d * 4 / n_ranks;
    /* a microbatch: hidden, normed x, q, k, v, mixed, cached k and v, the reduction's buffer; gate and up */
    const double microbatch = BLOCK * (9 * d + 2 * ff) * 4;
    return weights + e_slice + sigma + leaf + hidden + 2 * microbatch;
}

int main(int argc, char **argv)
{
    const char *scratch = argc > 1 ? argv[1] : "/tmp";
    char dir[PATH_MAX - 64], text[PATH_MAX], out[PATH_MAX - 64];
    struct comm world;
    struct backend backend;
    struct calibrate_result result;
    struct rusage usage;
    const char *texts[1] = {text};
    int local = OK;
    if (backend_open(&backend, "cpu", 1) != OK || comm_open_mpi(&world, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 1);
    snprintf(dir, sizeof dir, "%s/glowq-memory-model", scratch);
    snprintf(out, sizeof out, "%s/glowq-memory.glowq", scratch);
    snprintf(text, sizeof text, "%s/text.txt", dir);
    if (world.rank == 0)
        local = write_model(dir);
    if (comm_agree(&world, local) != OK)
        return 1;
    const struct calibrate_options options = {.model = dir,
                                              .texts = texts,
                                              .n_texts = 1,
                                              .out = out,
                                              .bits = 4,
                                              .group_size = 128,
                                              .samples = SAMPLES,
                                              .seq_len = SEQ,
                                              .solve = {.solver = SOLVER_KRYLOV,
                                                        .rank = 64,
                                                        .oversample = 10,
                                                        .power = -1,
                                                        .stop = 0.005,
                                                        .max_steps = 6,
                                                        .damp = DAMP_DIAG,
                                                        .alpha = 0.05,
                                                        .factor_dtype = DT_BF16},
                                              .overwrite = 1};
    const int64_t start = rss_bytes();
    if (calibrate(&world, &options, &result) != OK)
        return 1;
    getrusage(RUSAGE_SELF, &usage);
    const double used = (double)usage.ru_maxrss * 1024 - (double)start, bound = bound_bytes(world.size);
    printf("rank %d of %d: %.2f GB above start-up, bound %.2f GB, ratio %.2f (at most 1.2); %.1f s\n", world.rank,
           world.size, used / 1e9, bound / 1e9, used / bound, result.seconds);
    local = used <= 1.2 * bound ? OK : ERR_FIT;
    local = comm_agree(&world, local);
    if (world.rank == 0) {
        char command[2 * PATH_MAX + 32];
        snprintf(command, sizeof command, "rm -rf '%s' '%s'", dir, out);
        if (system(command) != 0)
            return 1;
    }
    comm_close(&world);
    backend_close(&backend);
    return local != OK;
}
