# kernels/cuda/attention*.cu: every tier on the simulator, with blocks, warps and lanes in several orders, and on a card.
if(TARGET glowq_cuda_sim)
  add_case(NAME attention_tiers_cuda_sim PROGRAM test_attention_tiers ARGS cuda:sim LABELS unit)
  add_case(NAME attention_tiers_cuda_sim_f32 PROGRAM test_attention_tiers ARGS cuda:sim:f32 LABELS unit)
  foreach(order reverse shuffle)
    add_case(NAME attention_tiers_cuda_sim_${order} PROGRAM test_attention_tiers ARGS cuda:sim LABELS unit
      ENV GLOWQ_SIM_ORDER=${order})
  endforeach()
  # Work cut as on an H100, whose multiprocessors are 132 and not 4.
  add_case(NAME attention_tiers_cuda_sim_132 PROGRAM test_attention_tiers ARGS cuda:sim LABELS unit
    ENV GLOWQ_TUNE=sim.multiprocessors=132)
endif()
add_case(NAME attention_tiers_cuda PROGRAM test_attention_tiers ARGS cuda LABELS gpu)
add_case(NAME attention_tiers_cuda_f32 PROGRAM test_attention_tiers ARGS cuda:f32 LABELS gpu)
