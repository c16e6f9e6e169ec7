polyreme_test(worker_sampler_test
  SOURCES sampler_test.cc
  DEPS polyreme_backend)
