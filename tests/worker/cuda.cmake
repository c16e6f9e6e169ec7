# What of the CUDA backend runs without CUDA.
polyreme_test(worker_cuda_table_test
  SOURCES products_table_test.cc
  DEPS polyreme_tensor)

# Kernels and products alone, without the plugin: what fails here is none of the ops' doing.
if(POLYREME_CUDA)
  set(cuda ${PROJECT_SOURCE_DIR}/worker/backend/cuda)
  polyreme_cuda_kernels(polyreme_product_kernels ARCHS ${POLYREME_CUDA_ARCHS}
    SOURCES ${cuda}/elementwise.cu ${cuda}/gemv.cu)
  polyreme_test(worker_cuda_kernels_test
    SOURCES cuda_kernels_test.cc cuda_products_test.cc ${cuda}/cublas_library.cc
            ${cuda}/products.cc $<TARGET_OBJECTS:polyreme_product_kernels>
    DEPS polyreme_test_support CUDA::cudart_static
    TIMEOUT 240)
endif()
