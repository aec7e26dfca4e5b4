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

# NCCL: a stand-in that moves host memory by MPI, and the real library where there is a GPU.
if(TARGET test_nccl)
  add_library(nccl_double MODULE ${CMAKE_CURRENT_SOURCE_DIR}/nccl_double.c)
  target_link_libraries(nccl_double PRIVATE glowq_flags MPI::MPI_C)
  foreach(np 1 2 3 4)
    add_case(NAME nccl_np${np} PROGRAM test_nccl NP ${np} ARGS carry $<TARGET_FILE:nccl_double> LABELS mpi)
  endforeach()
  add_case(NAME nccl_self PROGRAM test_nccl ARGS carry $<TARGET_FILE:nccl_double> LABELS unit)
  foreach(scenario absent gone init duplicate)
    add_case(NAME nccl_${scenario} PROGRAM test_nccl NP 3 ARGS ${scenario} $<TARGET_FILE:nccl_double> LABELS fault
      TIMEOUT 60)
  endforeach()
  foreach(scenario old off missing unforced)
    add_case(NAME nccl_${scenario} PROGRAM test_nccl NP 2 ARGS ${scenario} $<TARGET_FILE:nccl_double> LABELS mpi)
  endforeach()
  add_case(NAME nccl_real PROGRAM test_nccl ARGS real LABELS gpu)
  # Our declarations of NCCL's interface are compared with its header where there is one (it includes CUDA's).
  include(CheckIncludeFile)
  set(CMAKE_REQUIRED_INCLUDES ${CUDAToolkit_INCLUDE_DIRS} /usr/local/cuda/include)
  check_include_file(nccl.h GLOWQ_HAVE_NCCL_H)
  if(GLOWQ_HAVE_NCCL_H)
    target_compile_definitions(test_nccl PRIVATE HAVE_NCCL_H)
    target_include_directories(test_nccl SYSTEM PRIVATE ${CMAKE_REQUIRED_INCLUDES})
  endif()
endif()
