# kernels/: the mixture-of-experts ops, on every CPU backend, without AVX-512, and without any vectors.
foreach(backend cpu cpu:ref cpu:check)
  string(REPLACE ":" "_" suffix ${backend})
  add_case(NAME kernels_moe_${suffix} PROGRAM test_kernels_moe ARGS ${backend} LABELS unit)
endforeach()
add_case(NAME kernels_moe_avx2 PROGRAM test_kernels_moe ARGS cpu LABELS unit ENV GLOWQ_DISABLE=avx512)
add_case(NAME kernels_moe_plain PROGRAM test_kernels_moe ARGS cpu LABELS unit ENV "GLOWQ_DISABLE=avx512,avx2")
