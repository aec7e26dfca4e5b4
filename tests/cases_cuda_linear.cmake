# kernels/cuda/: what the linears rest on, and each of their tiers in the simulator and on a card.
if(TARGET glowq_cuda_sim)
  foreach(name fragments wgmma) # on the simulator itself, without a backend
    add_executable(test_${name} test_${name}.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/sim/sim.cpp
      ${CMAKE_SOURCE_DIR}/kernels/cuda/sim/fiber.cpp)
    target_include_directories(test_${name} PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_features(test_${name} PRIVATE cxx_std_20)
    target_compile_definitions(test_${name} PRIVATE _GNU_SOURCE)
    target_compile_options(test_${name} PRIVATE -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas
      $<$<BOOL:${GLOWQ_WERROR}>:-Werror>)
    add_dependencies(test_${name} base)
    target_link_libraries(test_${name} PRIVATE $<TARGET_FILE:base> m OpenMP::OpenMP_CXX Threads::Threads PkgConfig::CMOCKA)
    add_case(NAME ${name} PROGRAM test_${name} LABELS unit)
  endforeach()
  add_dependencies(test_linear_tiers glowq_cuda_sim)
  add_case(NAME linear_tiers_sim PROGRAM test_linear_tiers ARGS cuda:sim LABELS unit TIMEOUT 900)
  add_case(NAME linear_tiers_sim_f32 PROGRAM test_linear_tiers ARGS cuda:sim:f32 LABELS unit TIMEOUT 900)
endif()
add_case(NAME linear_tiers_cuda PROGRAM test_linear_tiers ARGS cuda LABELS gpu)
add_case(NAME linear_tiers_cuda_f32 PROGRAM test_linear_tiers ARGS cuda:f32 LABELS gpu)
