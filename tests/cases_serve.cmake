# The server: its guard over sockets, then the whole program.
add_case(NAME text_stream PROGRAM test_text_stream LABELS unit)
add_case(NAME http PROGRAM test_http LABELS serve)
add_fuzz(http infer)
add_fuzz_case(http 4000 serve)
add_fuzz(api infer)
add_fuzz_case(api 4000 serve)
function(add_serve what ranks)
  add_test(NAME serve_${what}_np${ranks} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/cli/serve.sh ${what} ${ranks}
    WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  set_tests_properties(serve_${what}_np${ranks} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 LABELS serve PROCESSORS 2
    ENVIRONMENT "${test_environment};GLOWQ_MPIEXEC=${MPIEXEC_EXECUTABLE}")
endfunction()
if(TARGET glowq)
  add_serve(api 1)
  add_serve(api 2)
  add_serve(limits 1)
  add_serve(lost 3)
endif()
