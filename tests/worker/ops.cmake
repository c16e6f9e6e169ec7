polyreme_test(worker_ops_test
  SOURCES cpu_backend_test.cc ops_conformance_test.cc ops_exactness_test.cc ops_harness.cc
  DEPS polyreme_backend polyreme_test_support)
