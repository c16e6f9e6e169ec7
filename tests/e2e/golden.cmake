polyreme_test(e2e_golden_test
  SOURCES golden_test.cc ${PROJECT_SOURCE_DIR}/tests/worker/model_harness.cc
  DEPS polyreme_model polyreme_backend
  TIMEOUT 300)
