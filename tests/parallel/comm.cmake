polyreme_test(parallel_comm_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/allocation_count.cc
          ${CMAKE_CURRENT_LIST_DIR}/communicator_conformance_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/process_group_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/process_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/ranks.cc
          ${CMAKE_CURRENT_LIST_DIR}/socket_rendezvous.cc
          ${CMAKE_CURRENT_LIST_DIR}/steady_state_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/tcp_handshake_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/tree_sum_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/wait_board_test.cc
  DEPS polyreme_comm
  LABELS threads+memory)

# One rank as a process, which the tests start four at a time.
add_executable(comm_rank ${CMAKE_CURRENT_LIST_DIR}/comm_rank_main.cc
                         ${CMAKE_CURRENT_LIST_DIR}/socket_rendezvous.cc)
target_link_libraries(comm_rank PRIVATE polyreme_comm)
polyreme_compile_options(comm_rank)
add_dependencies(parallel_comm_test comm_rank)
target_compile_definitions(parallel_comm_test PRIVATE POLYREME_COMM_RANK="$<TARGET_FILE:comm_rank>")
