polyreme_test(worker_weights_test
  SOURCES safetensors_test.cc checkpoint_test.cc truncation_test.cc checkpoint_builder.cc
  DEPS polyreme_weights)
polyreme_test(worker_dummy_test
  SOURCES dummy_test.cc checkpoint_builder.cc model_harness.cc
  DEPS polyreme_model polyreme_backend)
