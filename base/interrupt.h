/* SPDX-License-Identifier: Apache-2.0
 * Signals that ask for an end: USR1 (a batch system's notice before the time limit), TERM, INT. A command that can be resumed
 * catches them and looks now and then whether one came; every other command ends by them as any program does. Not collective: a
 * signal reaches ranks at different moments, or only one of them, so ranks agree on the largest number (comm_max_i64).
 */
#ifndef GLOWQ_BASE_INTERRUPT_H
#define GLOWQ_BASE_INTERRUPT_H

/* From here on the first of the three is only noted, and notice (kept; NULL: nothing) is written to stderr. After an INT or TERM
 * the next one ends the program at once. What the program was started to ignore stays ignored. */
void interrupt_catch(const char *notice);
/* The number of the signal that came, or 0. */
int interrupt_pending(void);
/* From any thread, for good: what nobody waits for any more is to be left where it stands. Loading a model heeds it (model/linear.h), on
 * this rank. */
void interrupt_abandon(void);
int interrupt_abandoned(void);
/* "SIGUSR1" */
const char *interrupt_name(int number);

#endif
