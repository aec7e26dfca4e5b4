foreach(np 1 2 3 8)
  add_case(NAME covariance_np${np} PROGRAM test_covariance NP ${np} ARGS cpu LABELS mpi)
endforeach()
add_case(NAME covariance_check PROGRAM test_covariance ARGS cpu:check LABELS unit)
