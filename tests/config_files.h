/* SPDX-License-Identifier: Apache-2.0
 * Configurations for tests: the keys that have no default, and a config.json read from a text. Included by one .c file a program.
 */
#ifndef GLOWQ_TESTS_CONFIG_FILES_H
#define GLOWQ_TESTS_CONFIG_FILES_H

#include "model/config.h"
#include "tests/checkpoint_files.h"

/* The keys without a default, as small as they can be and all different. */
#define SIZES                                                                                                          \
    "\"hidden_size\":12,\"intermediate_size\":10,\"num_hidden_layers\":3,\"num_attention_heads\":6,\"vocab_size\":7"
#define LLAMA "{\"model_type\":\"llama\"," SIZES
#define MISTRAL "{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2"
#define QWEN2 "{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2"
#define QWEN3 "{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":2"
#define MIXTRAL "{\"model_type\":\"mixtral\"," SIZES ",\"num_key_value_heads\":2"
#define QWEN2_MOE "{\"model_type\":\"qwen2_moe\"," SIZES ",\"num_key_value_heads\":2"
#define QWEN3_MOE "{\"model_type\":\"qwen3_moe\"," SIZES ",\"num_key_value_heads\":2"

static struct model_config read_ok(const char *text)
{
    struct model_config c;
    write_text("config.json", text);
    int err = config_read(scratch, &c);
    if (err)
        fail_msg("refused: %s\n%s", err_last(), text);
    return c;
}

#endif
