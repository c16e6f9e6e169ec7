polyreme_test(parallel_launch_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/launch_env_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/host_address_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/heart_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/node_list_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/rendezvous_test.cc
  DEPS polyreme_launch
  LABELS threads)
