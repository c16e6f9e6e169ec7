# What of the CUDA backend runs without CUDA.
polyreme_test(worker_cuda_table_test
  SOURCES products_table_test.cc
  DEPS polyreme_tensor)
