# Solvers against the dense oracle and against themselves on other numbers of ranks; see test_solve.c.
foreach(solver krylov qr-rsvd)
  foreach(np 1 2 3 4)
    add_case(NAME solve_${solver}_np${np} PROGRAM test_solve NP ${np} ARGS ${solver} LABELS unit mpi)
  endforeach()
  add_case(NAME solve_${solver}_check PROGRAM test_solve ARGS ${solver} cpu:check LABELS unit)
endforeach()
foreach(np 1 3)
  add_case(NAME solve_householder_np${np} PROGRAM test_solve NP ${np} ARGS qr-rsvd:householder LABELS unit mpi)
endforeach()
# Products that the solvers are made of: with and without the AVX-512 loop, and behind protected memory.
add_case(NAME products PROGRAM test_products LABELS unit)
add_case(NAME products_check PROGRAM test_products ARGS cpu:check LABELS unit)
add_case(NAME products_plain PROGRAM test_products LABELS unit ENV GLOWQ_DISABLE=avx512)
