/* SPDX-License-Identifier: Apache-2.0
 * glowq status: how far a calibration is, from any machine that sees its folder (calib/events.h).
 */
#include "launch/commands.h"

#include "base/err.h"
#include "calib/events.h"

#include <stdio.h>

static const struct option_spec table[] = {OPT_END};

/* Seconds that the layers still missing will take, by the mean of those solved; negative: nobody knows. */
static double left_s(const struct calibration_progress *p)
{
    const int64_t missing = p->n_layers - p->n_published;
    return p->layer_s > 0 && p->n_layers > 0 ? (double)missing * p->layer_s / (double)p->stages : -1;
}

static json_t *or_null(int64_t value)
{
    return value < 0 ? json_null() : json_integer(value);
}

static int print_json(const char *dir, const struct calibration_progress *p)
{
    const int goes_on = p->state == STATE_RUNNING && left_s(p) >= 0;
    return out_json(json_pack("{s:i,s:s,s:s,s:o,s:I,s:o,s:I,s:I,s:I,s:s,s:s,s:s,s:s,s:o,s:o,s:o}", "schema_version",
                              JSON_SCHEMA_VERSION, "path", dir, "state", progress_state_name(p->state), "n_layers",
                              or_null(p->n_layers), "n_published", (json_int_t)p->n_published, "layer",
                              or_null(p->layer), "runs", (json_int_t)p->runs, "n_ranks", (json_int_t)p->ranks,
                              "first_layer", (json_int_t)p->first, "host", p->host, "started", p->started, "last_event",
                              p->last, "reason", p->reason, "hidden_layer", or_null(p->hidden), "seconds_per_layer",
                              p->layer_s > 0 ? json_number(p->layer_s) : json_null(), "seconds_left",
                              goes_on ? json_number(left_s(p)) : json_null()));
}

static void print_text(const char *dir, const struct calibration_progress *p)
{
    char of[32] = "";
    if (p->n_layers >= 0)
        snprintf(of, sizeof of, " of %lld", (long long)p->n_layers);
    out_print("%-15s %s%s%s%s\n", dir, progress_state_name(p->state), p->reason[0] ? " (" : "", p->reason,
              p->reason[0] ? ")" : "");
    out_print("layers          %lld%s are published\n", (long long)p->n_published, of);
    if (p->runs > 0)
        out_print("run %-11lld on %lld rank%s, begun %s on %s at layer %lld; last heard of %s\n", (long long)p->runs,
                  (long long)p->ranks, p->ranks == 1 ? "" : "s", p->started, p->host, (long long)p->first, p->last);
    if (p->layer_s > 0)
        out_print("a layer         %.1f s\n", p->layer_s);
    if (p->state == STATE_RUNNING && left_s(p) >= 0)
        out_print("left            about %.0f s\n", left_s(p));
    if (p->state != STATE_FINISHED && p->hidden >= 0)
        out_print("hidden states   kept after layer %lld\n", (long long)p->hidden);
    if (p->state == STATE_STOPPED || p->state == STATE_KILLED || p->state == STATE_FAILED)
        out_print("the same command goes on from there, on any number of ranks\n");
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct calibration_progress p;
    (void)comm;
    TRY(calibration_progress(o->positional, &p));
    if (options_flag(o, "json"))
        TRY(print_json(o->positional, &p));
    else
        print_text(o->positional, &p);
out:
    return err;
}

const struct command command_status = {
    .name = "status",
    .summary = "say how far a calibration is",
    .positional = "DIR.glowq",
    .about =
        "Reads how far the calibration (or solving) of a .glowq folder is: the layers published, the last run's "
        "events, and "
        "whether it is running, stopped by a signal, failed, killed (it ended without a word) or finished. Works on "
        "any machine "
        "that sees the folder, while the job writes it; \"running\" is known where its file system passes locks on.",
    .examples = "Examples:\n  glowq status llama.glowq\n  glowq status llama.glowq --json\n",
    .options = table,
    .rank0_only = 1,
    .run = run,
};
