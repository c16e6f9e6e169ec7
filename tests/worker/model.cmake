polyreme_test(worker_model_test
  SOURCES model_test.cc model_harness.cc staged_communicator.cc test_backends.cc ops_harness.cc checkpoint_builder.cc
  DEPS polyreme_model polyreme_backend polyreme_test_support
  TIMEOUT 300)
if(POLYREME_CUDA)
  # Which cases there are is asked of the plugin.
  add_dependencies(worker_model_test polyreme_cuda)
endif()
