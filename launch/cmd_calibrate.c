/* SPDX-License-Identifier: Apache-2.0
 * glowq calibrate: checkpoint and text -> NAME.glowq. The work is calib/calibrate.c.
 */
#include "launch/calibration.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("Input and output:"),
    OPT_STRING("model", 'm', "DIR", "Hugging Face folder: config.json, safetensors, tokenizer.json"),
    OPT_LIST("text", 0, "FILE", "calibration text, UTF-8; several are read one after another"),
    OPT_REQUIRED("out", 'o', "DIR.glowq", "folder to make, or to resume"),
    OPT_FLAG("overwrite", 0, "make an output again that is finished, or was made with other settings"),
    OPTIONS_SYNTHETIC,
    OPTIONS_CALIBRATION,
    OPT_HEADING("Files kept:"),
    OPT_FLAG("keep-stats", 0,
             "keep the statistics in OUT/stats, to `glowq solve` with other settings without running the model"),
    OPT_INT("hidden-every", 0, "N", "-1", -1, 1 << 20,
            "keep hidden states after every N layers (at their wave's end), so that a resume needn't run finished ones "
            "again; 0: never, -1: "
            "when running them again would take ten times as long"),
    OPTIONS_GRID,
    OPTIONS_COMPUTE,
    OPTIONS_MEMORY,
    OPT_END,
};

/* A synthetic model takes a text only beside its tokenizer: in the folder of its configuration. */
static int check(struct options *o)
{
    int n_texts = 0;
    if (source_check(o) != OK || grid_check(o) != OK || memory_option_check(o) != OK)
        return ERR_ARG;
    options_list(o, "text", &n_texts);
    if (n_texts == 0 && !options_string(o, "synthetic"))
        return options_refuse(o, "missing --text FILE");
    return OK;
}

/* Folder of a path; caller frees, NULL: out of memory. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
}

static int run(struct comm *comm, const struct options *o)
{
    struct calibrate_options c = calibration_options(o);
    c.out = options_string(o, "out");
    c.overwrite = options_flag(o, "overwrite");
    c.keep_stats = options_flag(o, "keep-stats");
    c.hidden_every = options_int(o, "hidden-every");
    grid_options(o, &c);
    memory_options(o, &c);
    c.texts = options_list(o, "text", &c.n_texts);
    char *folder = c.synthetic.config ? folder_of(c.synthetic.config) : NULL;
    if (c.synthetic.config)
        c.model = c.n_texts > 0 ? folder : NULL;
    const int err = calibration_run(comm, o, &c);
    free(folder);
    return err;
}

const struct command command_calibrate = {
    .name = "calibrate",
    .summary = "quantize a model and solve its shared low-rank corrections",
    .about =
        "Quantizes the linears of a model and corrects each group that reads the same input by factors A_i B, with one "
        "B for the whole group, fitted to the inputs seen on a calibration text. All gates and ups of a layer with "
        "experts are one group. Works layer by layer; the same "
        "command again resumes an interrupted run, on any number of ranks and any grid of them, and gives the same "
        "bytes.",
    .examples = "Examples:\n"
                "  glowq calibrate --model llama --text a.txt --text b.txt --out llama.glowq\n"
                "  mpirun -n 4 glowq calibrate -m llama --text a.txt -o llama.glowq -b 3 -r 128\n"
                "  mpirun -n 16 glowq calibrate -m llama --text a.txt -o llama.glowq --grid 2x8\n"
                "  glowq calibrate -m llama --text a.txt -o plain.glowq --rank 0\n"
                "  glowq calibrate -m llama --text a.txt -o llama.glowq --keep-stats\n"
                "  glowq calibrate --synthetic examples/shapes/llama-3-8b.json --layers 2 \\\n"
                "      -o out.glowq\n",
    .options = table,
    .check = check,
    .resumable = 1,
    .run = run,
};
