/* SPDX-License-Identifier: Apache-2.0
 * glowq solve: statistics that `calibrate --keep-stats` left + checkpoint -> another NAME.glowq. The work is calib/calibrate.c.
 */
#include "launch/calibration.h"

static const struct option_spec table[] = {
    OPT_HEADING("Input and output:"),
    OPT_REQUIRED("stats", 's', "DIR.glowq", "what `glowq calibrate --keep-stats` made"),
    OPT_STRING("model", 'm', "DIR", "the checkpoint that was calibrated"),
    OPT_REQUIRED("out", 'o', "NEW.glowq", "folder to make, or to resume"),
    OPT_FLAG("overwrite", 0, "make an output again that is finished, or was made with other settings"),
    OPTIONS_SYNTHETIC,
    OPTIONS_QUANTIZATION,
    OPTIONS_EXPERTS,
    OPTIONS_SOLVER,
    OPT_INT("seed", 0, "N", "-1", -1, 9007199254740992.0, "seed of sketches; -1: that of the calibration"),
    OPTIONS_GRID,
    OPTIONS_COMPUTE,
    OPTIONS_MEMORY,
    OPT_END,
};

static int run(struct comm *comm, const struct options *o)
{
    struct calibrate_options c = solving_options(o);
    c.stats = options_string(o, "stats");
    grid_options(o, &c);
    memory_options(o, &c);
    c.out = options_string(o, "out");
    c.overwrite = options_flag(o, "overwrite");
    c.solve.seed = options_int(o, "seed") < 0 ? SEED_OF_STATS : (uint64_t)options_int(o, "seed");
    return calibration_run(comm, o, &c);
}

static int check(struct options *o)
{
    int err = source_check(o);
    err = err ? err : grid_check(o);
    return err ? err : memory_option_check(o);
}

const struct command command_solve = {
    .name = "solve",
    .summary = "solve a calibration again with other settings, from kept statistics",
    .about =
        "Quantizes and corrects a model like `glowq calibrate`, with the statistics that `calibrate --keep-stats` left "
        "in "
        "place of a text: the model isn't run. With the same settings the result has the same bytes, whatever the "
        "number of ranks of either. The factors of experts' gates and ups are fitted to their layer's statistics, as "
        "`calibrate --expert-refit layer` does it; an expert's down has statistics of its own.",
    .examples = "Examples:\n"
                "  glowq calibrate -m llama --text a.txt -o w4-r64.glowq --rank 64 --keep-stats\n"
                "  glowq solve --stats w4-r64.glowq -m llama -o w3-r32.glowq --bits 3 --rank 32\n",
    .options = table,
    .check = check,
    .resumable = 1,
    .run = run,
};
