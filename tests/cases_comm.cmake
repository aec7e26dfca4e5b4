# Ranks: who owns what, and the calls between them.
add_case(NAME shard PROGRAM test_shard LABELS unit)
add_case(NAME comm_self PROGRAM test_comm LABELS unit)
foreach(np 1 2 3 4 8)
  add_case(NAME comm_np${np} PROGRAM test_comm NP ${np} LABELS mpi)
endforeach()
# A rank that gives up ends the others, who wait for it, with its exit code.
if(TARGET test_comm)
  add_test(NAME comm_abort COMMAND sh -c
    "${MPIEXEC_EXECUTABLE} -n 3 $<TARGET_FILE:test_comm> abort; test $? = 6")
  set_tests_properties(comm_abort PROPERTIES TIMEOUT 60 LABELS mpi PROCESSORS 2 ENVIRONMENT "${test_environment}")
endif()
