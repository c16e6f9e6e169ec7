# Real processes under mpirun on few cores: several minutes in all, one at a time.
polyreme_library(polyreme_e2e_support
  SOURCES launched_cluster.cc stories.cc fault_proxy.cc two_hosts.cc
          ${PROJECT_SOURCE_DIR}/tests/coordinator/api/raw_client.cc
  DEPS polyreme_comm GTest::gmock GTest::gtest)
target_compile_definitions(polyreme_e2e_support PUBLIC POLYREME_BINARY="$<TARGET_FILE:polyreme>"
                           PRIVATE POLYREME_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
function(polyreme_e2e_test name source)
  polyreme_test(${name} SOURCES ${source} DEPS polyreme_e2e_support TIMEOUT 240 LABELS e2e)
  add_dependencies(${name} polyreme)
endfunction()
polyreme_e2e_test(e2e_coordinator_death_test coordinator_death_test.cc)
polyreme_e2e_test(e2e_fault_proxy_test fault_proxy_test.cc)
polyreme_e2e_test(e2e_kill_matrix_test kill_matrix_test.cc)
polyreme_e2e_test(e2e_layout_test layout_equivalence_test.cc)
polyreme_e2e_test(e2e_drain_test drain_test.cc)
polyreme_e2e_test(e2e_flight_test flight_test.cc)
polyreme_e2e_test(e2e_hanging_thread_test hanging_thread_test.cc)
# In front of the C library in the program under test.
add_library(polyreme_hang_preload MODULE hang_preload.cc)
add_dependencies(e2e_hanging_thread_test polyreme_hang_preload)
target_compile_definitions(e2e_hanging_thread_test
                           PRIVATE POLYREME_HANG_PRELOAD="$<TARGET_FILE:polyreme_hang_preload>")
polyreme_e2e_test(e2e_launch_test launch_test.cc)
polyreme_e2e_test(e2e_leftovers_test leftovers_test.cc)
polyreme_e2e_test(e2e_overload_test overload_test.cc)
polyreme_e2e_test(e2e_peer_links_test peer_links_test.cc)
polyreme_e2e_test(e2e_recovery_test recovery_test.cc)
polyreme_e2e_test(e2e_serve_test serve_test.cc)
polyreme_e2e_test(e2e_slurm_test slurm_test.cc)
# Ranks as threads, their connections through a proxy that misbehaves.
polyreme_test(e2e_faulty_links_test
  SOURCES faulty_links_test.cc ${PROJECT_SOURCE_DIR}/tests/parallel/ranks.cc
          ${POLYREME_WORKER_TESTS}/checkpoint_builder.cc ${POLYREME_WORKER_TESTS}/hand_scheduler.cc
  DEPS polyreme_bench polyreme_e2e_support LABELS threads)
# A minute of the soak.
add_test(NAME Soak.AMinuteOfKillsLosesNothing
  COMMAND ${PROJECT_SOURCE_DIR}/scripts/soak.sh --minutes 1 --kills-per-minute 6 --seed 1
          --program $<TARGET_FILE:polyreme> --out ${CMAKE_CURRENT_BINARY_DIR}/soak)
set_tests_properties(Soak.AMinuteOfKillsLosesNothing PROPERTIES TIMEOUT 400 LABELS e2e)
polyreme_test(e2e_bench_test
  SOURCES bench_test.cc ../deploy/fake_server.cc
  DEPS polyreme_bench polyreme_e2e_support Boost::headers TIMEOUT 300 LABELS e2e)
add_dependencies(e2e_bench_test polyreme bench_null_server)
target_compile_definitions(e2e_bench_test PRIVATE POLYREME_NULL_SERVER="$<TARGET_FILE:bench_null_server>")
