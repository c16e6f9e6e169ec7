polyreme_test(parallel_base_test
  SOURCES json_test.cc
  DEPS polyreme_base)
