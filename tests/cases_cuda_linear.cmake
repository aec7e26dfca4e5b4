# kernels/cuda/: what the linears rest on, and each of their tiers in the simulator and on a card.
if(TARGET glowq_cuda_sim)
  add_executable(test_fragments test_fragments.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/sim/sim.cpp
    ${CMAKE_SOURCE_DIR}/kernels/cuda/sim/fiber.cpp)
  target_include_directories(test_fragments PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_features(test_fragments PRIVATE cxx_std_20)
  target_compile_definitions(test_fragments PRIVATE _GNU_SOURCE)
  target_compile_options(test_fragments PRIVATE -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas
    $<$<BOOL:${GLOWQ_WERROR}>:-Werror>)
  add_dependencies(test_fragments base)
  target_link_libraries(test_fragments PRIVATE $<TARGET_FILE:base> m OpenMP::OpenMP_CXX Threads::Threads PkgConfig::CMOCKA)
  add_case(NAME fragments PROGRAM test_fragments LABELS unit)
  add_dependencies(test_linear_tiers glowq_cuda_sim)
  add_case(NAME linear_tiers_sim PROGRAM test_linear_tiers ARGS cuda:sim LABELS unit TIMEOUT 900)
  add_case(NAME linear_tiers_sim_f32 PROGRAM test_linear_tiers ARGS cuda:sim:f32 LABELS unit TIMEOUT 900)
endif()
add_case(NAME linear_tiers_cuda PROGRAM test_linear_tiers ARGS cuda LABELS gpu)
add_case(NAME linear_tiers_cuda_f32 PROGRAM test_linear_tiers ARGS cuda:f32 LABELS gpu)
