# The packer alone, without the plugin: what fails here is neither the backend's nor the loader's.
if(POLYREME_CUDA)
  set(cuda ${PROJECT_SOURCE_DIR}/worker/backend/cuda)
  polyreme_cuda_kernels(polyreme_weight_kernels ARCHS ${POLYREME_CUDA_ARCHS}
    SOURCES ${cuda}/weight_kernels.cu)
  polyreme_test(worker_cuda_weights_test
    SOURCES cuda_weights_test.cc ${cuda}/cuda_packer.cc ${cuda}/staged_upload.cc
            $<TARGET_OBJECTS:polyreme_weight_kernels>
    DEPS polyreme_weights polyreme_backend CUDA::cudart_static
    TIMEOUT 240)
endif()
