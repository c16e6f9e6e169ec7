polyreme_test(worker_weights_test
  SOURCES safetensors_test.cc checkpoint_test.cc checkpoint_builder.cc
  DEPS polyreme_weights)
