polyreme_test(parallel_comm_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/communicator_conformance_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/process_group_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/ranks.cc
          ${CMAKE_CURRENT_LIST_DIR}/tree_sum_test.cc
  DEPS polyreme_comm)
