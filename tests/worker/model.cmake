polyreme_test(worker_model_test
  SOURCES model_test.cc model_harness.cc checkpoint_builder.cc
  DEPS polyreme_model polyreme_backend)
