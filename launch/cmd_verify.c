/* SPDX-License-Identifier: Apache-2.0
 * glowq verify: every byte of a .glowq folder against its checksums (model/store.h).
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "model/store.h"

static const struct option_spec table[] = {OPT_END};

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    int64_t n_problems = 0;
    (void)comm;
    const double start = now_s();
    err = store_verify(o->positional, &n_problems);
    if (options_flag(o, "json")) {
        int printed = out_json(json_pack("{s:i,s:s,s:b,s:I,s:o}", "schema_version", JSON_SCHEMA_VERSION, "path",
                                         o->positional, "sound", err == OK, "problems", (json_int_t)n_problems,
                                         "seconds", json_number(now_s() - start)));
        return err != OK ? err : printed;
    }
    if (err == OK)
        out_print("%s: sound\n", o->positional);
    return err;
}

const struct command command_verify = {
    .name = "verify",
    .summary = "check every checksum of a .glowq folder",
    .positional = "DIR.glowq",
    .about = "Reads a .glowq folder whole, with the statistics that it may keep, and checks every file and every block "
             "of rows "
             "against its checksum. Every "
             "difference is named with file, dataset and rows; any of them ends with exit code 3.",
    .examples = "Examples:\n  glowq verify llama.glowq\n",
    .options = table,
    .rank0_only = 1,
    .run = run,
};
