# GPUs that fail in the middle of a run, simulated: cli/device_faults.sh.
if(TARGET glowq AND TARGET glowq_cuda_sim)
  add_cli(device_faults fault 300 1)
endif()
