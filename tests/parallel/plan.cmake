polyreme_test(parallel_plan_test
  SOURCES model_spec_test.cc rope_test.cc shard_plan_test.cc topology_test.cc
  DEPS polyreme_plan
  LABELS memory)
