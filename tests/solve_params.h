/* SPDX-License-Identifier: Apache-2.0
 * The settings of an ordinary calibration, for tests and benchmarks of the solvers. */
#ifndef GLOWQ_TESTS_SOLVE_PARAMS_H
#define GLOWQ_TESTS_SOLVE_PARAMS_H

#include "calib/solve.h"

static inline struct solve_params ordinary_params(int64_t rank, enum dtype factor_dtype)
{
    return (struct solve_params){.solver = SOLVER_KRYLOV,
                                 .qr = QR_GRAM,
                                 .sharing = SHARE_GROUP,
                                 .rank = rank,
                                 .oversample = 10,
                                 .power = -1,
                                 .stop = 0.005,
                                 .max_steps = 6,
                                 .damp = DAMP_DIAG,
                                 .factor_dtype = factor_dtype,
                                 .seed = 1};
}

#endif
