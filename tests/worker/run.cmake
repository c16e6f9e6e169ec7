polyreme_test(worker_sampler_test
  SOURCES sampler_test.cc
  DEPS polyreme_backend)
polyreme_test(worker_run_test
  SOURCES load_watch_test.cc run_test.cc run_layout_test.cc recording_test.cc recording_backend.cc hand_scheduler.cc
          checkpoint_builder.cc count_allocations.cc test_backends.cc ops_harness.cc
  DEPS polyreme_bench polyreme_test_support
  LABELS threads+memory
  TIMEOUT 240)
if(POLYREME_CUDA)
  # Which cases there are is asked of the plugin.
  add_dependencies(worker_run_test polyreme_cuda)
endif()
