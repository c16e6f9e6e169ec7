set(POLYREME_WORKER_TESTS ${PROJECT_SOURCE_DIR}/tests/worker)
polyreme_test(e2e_golden_test
  SOURCES golden_test.cc ${POLYREME_WORKER_TESTS}/model_harness.cc
          ${POLYREME_WORKER_TESTS}/staged_communicator.cc
          ${POLYREME_WORKER_TESTS}/test_backends.cc ${POLYREME_WORKER_TESTS}/ops_harness.cc
  DEPS polyreme_model polyreme_backend polyreme_test_support
  TIMEOUT 300)
if(POLYREME_CUDA)
  # Which cases there are is asked of the plugin.
  add_dependencies(e2e_golden_test polyreme_cuda)
endif()
