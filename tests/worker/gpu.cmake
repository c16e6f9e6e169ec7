polyreme_test(worker_gpu_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/gpu_choice_test.cc
  DEPS polyreme_backend)
