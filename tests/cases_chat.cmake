# Chat templates: golden renderings and bounds everywhere, published templates where the test data lies beside the source tree.
add_case(NAME chat_template PROGRAM test_chat_template LABELS unit)
add_case(NAME chat_template_shared PROGRAM test_chat_template ARGS shared LABELS unit)
add_executable(fuzz_template ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_template.c ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_main.c)
target_link_libraries(fuzz_template PRIVATE model)
add_case(NAME fuzz_template PROGRAM fuzz_template ARGS ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/seeds/template 40000 LABELS unit)
