polyreme_test(parallel_step_test
  SOURCES step_test.cc step_properties_test.cc random_plans.cc
  DEPS polyreme_step
  LABELS memory)
