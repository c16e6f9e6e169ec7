polyreme_test(parallel_wire_test
  SOURCES codec_test.cc random_plans.cc
  DEPS polyreme_wire
  LABELS memory)
