# Each path of attention on a GPU; skips where there is none.
if(POLYREME_CUDA)
  polyreme_test(worker_cuda_attention_test
    SOURCES cuda_attention_test.cc ops_harness.cc
    DEPS polyreme_backend polyreme_test_support
    LABELS gpu TIMEOUT 600)
  add_dependencies(worker_cuda_attention_test polyreme_cuda)
endif()
