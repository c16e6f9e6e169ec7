add_library(polyreme_scheduler_harness STATIC fake_worker.cc scheduler_harness.cc)
target_link_libraries(polyreme_scheduler_harness PUBLIC polyreme_sched)
polyreme_compile_options(polyreme_scheduler_harness)

polyreme_test(coordinator_sched_test
  SOURCES sched_prefix_test.cc sched_test.cc scheduler_cache_test.cc scheduler_plan_test.cc
          scheduler_property_test.cc
  DEPS polyreme_scheduler_harness
  LABELS memory)

polyreme_test(coordinator_sched_allocation_test
  SOURCES allocation_count.cc sched_allocation_test.cc
  DEPS polyreme_scheduler_harness)
