# The program as a user meets it: one script a subject, see cli/lib.sh.
add_case(NAME report PROGRAM test_report LABELS unit)

# add_cli(NAME LABEL TIMEOUT CORES [ARGS...]). CORES: what it keeps busy most of the time, 1 or 2.
function(add_cli name label timeout cores)
  string(REGEX REPLACE "^(eval|plan)_.*" "\\1" script ${name})
  add_test(NAME cli_${name} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/cli/${script}.sh ${ARGN}
    WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  set_tests_properties(cli_${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${timeout} LABELS ${label} PROCESSORS ${cores}
    ENVIRONMENT "${test_environment};GLOWQ_MPIEXEC=${MPIEXEC_EXECUTABLE}")
endfunction()
if(TARGET glowq)
  add_cli(usage unit 120 1)
  add_cli(mistakes mpi 300 1)
  add_cli(json unit 120 1)
  add_cli(tokenize unit 120 1)
  add_cli(eval unit 300 1)
  add_cli(eval_published slow 600 1 data)
  add_cli(published slow 900 2)
  add_cli(hostile mpi 300 1)
  add_cli(parallel mpi 600 2)
  add_cli(calibrate mpi 900 2)
  add_cli(grid mpi 600 2)
  add_cli(experts mpi 900 2)
  add_cli(solve mpi 600 2)
  add_cli(verify mpi 300 1)
  add_cli(check mpi 300 2)
  add_cli(lost_rank fault 300 2)
  add_cli(stop fault 300 2)
  add_cli(doctor mpi 300 2)
  add_cli(resume fault 600 2)
  add_cli(kill fault 300 2)
  add_cli(kill_steps fault 900 1)
  add_cli(disk_full fault 300 1)
  add_cli(group mpi 300 1)
  add_test(NAME stream COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/bench_stream.sh 6 examples/dense/config.json 4 128
    WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  set_tests_properties(stream PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300 LABELS mpi PROCESSORS 2
    ENVIRONMENT "${test_environment};GLOWQ_MPIEXEC=${MPIEXEC_EXECUTABLE}")
  foreach(device cuda:sim cuda) # on a card, and its kernels compiled for the host
    string(REPLACE ":" "_" suffix ${device})
    add_test(NAME cli_device_${suffix} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/cli/device.sh ${device}
      WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
    set_tests_properties(cli_device_${suffix} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900 PROCESSORS 2
      ENVIRONMENT "${test_environment};GLOWQ_MPIEXEC=${MPIEXEC_EXECUTABLE}")
  endforeach()
  set_tests_properties(cli_device_cuda_sim PROPERTIES LABELS mpi)
  set_tests_properties(cli_device_cuda PROPERTIES LABELS gpu)
  list_gpu(cli_device_cuda cli/device.sh "" 900 "" cuda)
endif()
