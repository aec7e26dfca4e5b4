/* SPDX-License-Identifier: Apache-2.0
 * Events: OUT/events.jsonl tells while a calibration goes on what a person on another machine wants to know: one JSON object a line,
 * appended by rank 0, over all runs that it takes.
 *   {"time": "2026-01-31T12:00:00Z", "event": "start", "ranks": 4, "stages": 2, "waves": 16, "layers": 32, "finished": 7, "first": 8,
 *    "host", "pid", "command"}
 *   {.., "event": "layer", "layer": 8, "seconds": 61.2, "solved": true}     false: it was finished and only run forward; told when it
 *                                                                           is on disk, of another stage than the first a wave later
 *   {.., "event": "hidden", "layer": 8}                                     its hidden states are kept
 *   {.., "event": "signal", "signal": "SIGUSR1", "layer": 9}                stopped after this layer
 *   {.., "event": "failed", "code": 1}   {.., "event": "end", "seconds": 700.1}
 * A run that is killed says nothing more. Times are the host's, UTC.
 */
#ifndef GLOWQ_CALIB_EVENTS_H
#define GLOWQ_CALIB_EVENTS_H

#include <jansson.h>
#include <stdint.h>

/* Adds "time" and appends; takes the object. What can't be written is a warning. Not collective: rank 0 alone. */
void events_add(const char *dir, json_t *event);

enum progress_state { STATE_FINISHED, STATE_RUNNING, STATE_STOPPED, STATE_FAILED, STATE_KILLED, STATE_EMPTY };
const char *progress_state_name(enum progress_state state); /* "finished", "running", "stopped", .. */

/* What a folder tells of its calibration. */
struct calibration_progress {
    enum progress_state state;
    int64_t n_layers, n_published; /* n_layers -1: unknown */
    int64_t runs, ranks, first;    /* of the last run; 0: none is told of */
    int64_t stages;                /* that work on layers at the same time */
    int64_t layer;                 /* the last that it did; -1: none */
    double layer_s;                /* mean time of the layers that it solved; 0: none yet */
    int64_t hidden;                /* hidden states are kept after this layer; -1: none */
    char host[64], started[32], last[32], reason[32];
};
/* From any machine that sees the folder, while it is being written. ERR_IO where there is no such folder. Not collective. */
int calibration_progress(const char *dir, struct calibration_progress *progress);

#endif
