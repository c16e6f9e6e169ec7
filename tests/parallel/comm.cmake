polyreme_test(parallel_comm_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/communicator_conformance_test.cc ${CMAKE_CURRENT_LIST_DIR}/ranks.cc
  DEPS polyreme_comm)
