# A cluster on this machine: a real Slurm, and hosts made of network namespaces. What a machine lacks for it is said (77). They wait
# more than they compute: others run beside them, from the beginning.
function(add_cluster name timeout)
  add_test(NAME cluster_${name} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/cluster/${name}.sh
    WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  set_tests_properties(cluster_${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${timeout} LABELS "slow;cluster" COST 100 PROCESSORS 1
    ENVIRONMENT "${test_environment};GLOWQ_MPIEXEC=${MPIEXEC_EXECUTABLE}")
endfunction()
if(TARGET glowq)
  add_cluster(jobs 600)
  add_cluster(hosts 300)
endif()
