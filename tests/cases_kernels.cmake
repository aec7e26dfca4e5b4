# kernels/: every program on every backend; what has vector loops also on cpu without AVX-512, and without any vectors.
foreach(program kernels kernels_linear kernels_attention kernels_dense)
  foreach(backend cpu cpu:ref cpu:check)
    string(REPLACE ":" "_" suffix ${backend})
    add_case(NAME ${program}_${suffix} PROGRAM test_${program} ARGS ${backend} LABELS unit)
  endforeach()
endforeach()
foreach(program kernels kernels_linear kernels_attention)
  add_case(NAME ${program}_avx2 PROGRAM test_${program} ARGS cpu LABELS unit ENV GLOWQ_DISABLE=avx512)
  add_case(NAME ${program}_plain PROGRAM test_${program} ARGS cpu LABELS unit ENV "GLOWQ_DISABLE=avx512,avx2")
endforeach()
# What cpu:check finds.
add_case(NAME check PROGRAM test_check LABELS unit)
