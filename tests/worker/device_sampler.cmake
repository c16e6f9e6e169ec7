# The device's sampler: its kernels on the host, and where there is a GPU the real ones.
polyreme_test(worker_sample_math_test
  SOURCES sample_math_test.cc sample_cases.cc
  DEPS polyreme_backend
  TIMEOUT 240)
if(POLYREME_CUDA)
  polyreme_test(worker_device_sampler_test
    SOURCES device_sampler_test.cc sample_cases.cc
    DEPS polyreme_backend
    TIMEOUT 600)
  if(TARGET polyreme_cuda)
    add_dependencies(worker_device_sampler_test polyreme_cuda)
  endif()
endif()
