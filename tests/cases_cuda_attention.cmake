# kernels/cuda/attention*.cu: every tier on the simulator, forwards and with blocks, warps and lanes in other orders, and on a card.
foreach(device cuda:sim cuda:sim:f32)
  string(REPLACE ":" "_" suffix ${device})
  add_case(NAME attention_tiers_${suffix} PROGRAM test_attention_tiers ARGS ${device} LABELS unit)
endforeach()
foreach(order reverse shuffle)
  add_case(NAME attention_tiers_cuda_sim_${order} PROGRAM test_attention_tiers ARGS cuda:sim LABELS unit
    ENV GLOWQ_SIM_ORDER=${order})
endforeach()
foreach(device cuda cuda:f32)
  string(REPLACE ":" "_" suffix ${device})
  add_case(NAME attention_tiers_${suffix} PROGRAM test_attention_tiers ARGS ${device} LABELS gpu)
endforeach()
