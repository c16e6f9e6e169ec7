polyreme_test(worker_ops_test
  SOURCES cpu_backend_test.cc ops_conformance_test.cc ops_exactness_test.cc ops_harness.cc
  DEPS polyreme_backend polyreme_test_support)
if(POLYREME_CUDA)
  polyreme_test(worker_cuda_device_test
    SOURCES cuda_device_test.cc ops_harness.cc
    DEPS polyreme_backend polyreme_test_support)
  # Which cases there are is asked of the plugin.
  add_dependencies(worker_ops_test polyreme_cuda)
  add_dependencies(worker_cuda_device_test polyreme_cuda)
endif()
