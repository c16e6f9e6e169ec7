# FlashInfer's headers (Apache-2.0; CUTLASS's below it: BSD-3), from its wheel on the Python package
# index, pinned by hash. Fetched once per build folder with whatever index pip is set up for, or
# given as a file by POLYREME_FLASHINFER_WHEEL. Without it our own attention kernels serve alone.
#
# Sets POLYREME_FLASHINFER_FOUND, and for polyreme_cuda_kernels
#   POLYREME_FLASHINFER_INCLUDES         POLYREME_FLASHINFER_FA2_OPTIONS     flashinfer_fa2.cu, sm_80 and newer
#   POLYREME_FLASHINFER_HOPPER_INCLUDES  POLYREME_FLASHINFER_HOPPER_OPTIONS  flashinfer_hopper.cu, sm_90a only
# attention.cc is compiled with POLYREME_FLASHINFER where it was found, and with
# POLYREME_FLASHINFER_HOPPER where flashinfer_hopper.cu is part of the build.
option(POLYREME_FLASHINFER "Use FlashInfer's kernels for prompts" ON)
set(POLYREME_FLASHINFER_WHEEL "" CACHE FILEPATH "The wheel flashinfer_python-0.6.8, if it is not to be fetched")
set(POLYREME_FLASHINFER_FOUND FALSE)

# Fetches the wheel and sets `out` to its path, or to an empty string.
function(polyreme_fetch_flashinfer folder out)
  set(${out} "" PARENT_SCOPE)
  find_program(POLYREME_PYTHON3 python3)
  if(NOT POLYREME_PYTHON3)
    return()
  endif()
  file(WRITE ${folder}/requirements.txt
    "flashinfer-python==0.6.8 --hash=sha256:e96d09b810cedd5f26a6764fface84b0d39dc60cbcc6167dc61bde3e949b3ed0\n")
  execute_process(
    COMMAND ${POLYREME_PYTHON3} -m pip download --quiet --disable-pip-version-check --no-deps
            --require-hashes --only-binary :all: --dest ${folder} -r ${folder}/requirements.txt
    RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said TIMEOUT 300)
  file(GLOB wheels ${folder}/flashinfer_python-0.6.8-*.whl)
  if(failed OR NOT wheels)
    string(STRIP "${said}" said)
    message(STATUS "FlashInfer: pip could not fetch it: ${said}")
    return()
  endif()
  list(GET wheels 0 wheel)
  set(${out} ${wheel} PARENT_SCOPE)
endfunction()

function(polyreme_find_flashinfer)
  set(folder ${CMAKE_BINARY_DIR}/_flashinfer)
  set(data ${folder}/flashinfer/data)
  if(NOT EXISTS ${folder}/extracted)
    set(wheel "${POLYREME_FLASHINFER_WHEEL}")
    if(wheel AND NOT EXISTS ${wheel})
      message(FATAL_ERROR "POLYREME_FLASHINFER_WHEEL: there is no file ${wheel}")
    elseif(NOT wheel)
      polyreme_fetch_flashinfer(${folder} wheel)
    endif()
    if(NOT wheel)
      return()
    endif()
    file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${folder}
      PATTERNS "flashinfer/data/include/*" "flashinfer/data/cutlass/include/*" "*/licenses/*")
    file(REMOVE ${folder}/flashinfer_python-0.6.8-py3-none-any.whl)
    if(NOT EXISTS ${data}/include/flashinfer/attention/prefill.cuh)
      message(FATAL_ERROR "FlashInfer: ${wheel} has no flashinfer/data/include; expected the wheel of flashinfer-python 0.6.8")
    endif()
    file(TOUCH ${folder}/extracted)
  endif()
  set(POLYREME_FLASHINFER_FOUND TRUE PARENT_SCOPE)
  set(POLYREME_FLASHINFER_INCLUDES ${data}/include PARENT_SCOPE)
  set(POLYREME_FLASHINFER_HOPPER_INCLUDES ${PROJECT_SOURCE_DIR}/worker/backend/cuda/flashinfer_shim
    ${data}/include ${data}/cutlass/include PARENT_SCOPE)
endfunction()

# As measured. Warnings are of FlashInfer's own code.
set(POLYREME_FLASHINFER_FA2_OPTIONS -DNDEBUG -use_fast_math -w)
set(POLYREME_FLASHINFER_HOPPER_OPTIONS ${POLYREME_FLASHINFER_FA2_OPTIONS} --expt-relaxed-constexpr)
if(POLYREME_FLASHINFER)
  polyreme_find_flashinfer()
endif()
if(POLYREME_FLASHINFER_FOUND)
  message(STATUS "FlashInfer 0.6.8: ${POLYREME_FLASHINFER_INCLUDES}")
else()
  message(STATUS "FlashInfer is not there: own attention kernels serve")
endif()
