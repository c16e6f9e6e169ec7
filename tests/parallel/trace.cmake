polyreme_test(parallel_trace_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/flight_ring_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/flight_story_test.cc
  DEPS polyreme_trace)
