if(POLYREME_CUDA)
  polyreme_test(parallel_nccl_test
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/gpu_ranks.cc ${CMAKE_CURRENT_LIST_DIR}/nccl_communicator_test.cc
            ${CMAKE_CURRENT_LIST_DIR}/nccl_failure_test.cc
    DEPS polyreme_nccl LABELS gpu)
endif()
