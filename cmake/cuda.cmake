# The CUDA language for the plugin libpolyreme_cuda.so. Architectures are always explicit: an old
# CMake's defaults and a new toolkit do not agree on which still exist. The .cu files are C++17,
# because CMake 3.25 knows no later standard for nvcc.
find_program(POLYREME_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT POLYREME_NVCC)
  message(FATAL_ERROR "POLYREME_CUDA needs the CUDA toolkit (nvcc), 12.4 or newer; set CUDACXX to its nvcc, or configure without POLYREME_CUDA")
endif()
execute_process(COMMAND ${POLYREME_NVCC} --list-gpu-code OUTPUT_VARIABLE POLYREME_GPU_CODES
  ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REPLACE "\n" ";" POLYREME_GPU_CODES "${POLYREME_GPU_CODES}")
if(NOT POLYREME_CUDA_ARCHS)
  message(FATAL_ERROR "POLYREME_CUDA_ARCHS is empty; expected a list such as 80;86;89;90")
endif()
foreach(arch IN LISTS POLYREME_CUDA_ARCHS)
  if(NOT "sm_${arch}" IN_LIST POLYREME_GPU_CODES)
    string(REPLACE ";" " " codes "${POLYREME_GPU_CODES}")
    message(FATAL_ERROR "POLYREME_CUDA_ARCHS names ${arch}, which ${POLYREME_NVCC} does not know; it knows ${codes} (70 wants a CUDA 12 toolkit)")
  endif()
endforeach()

set(CMAKE_CUDA_COMPILER ${POLYREME_NVCC})
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(POLYREME_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${POLYREME_CCACHE})
endif()

# polyreme_cuda_kernels(name ARCHS 80;90a SOURCES a.cu ... [OPTIONS ...] [INCLUDES dir ...]): an
# object library with machine code of each architecture and no PTX: another GPU is refused by name
# instead of being served by a compiler inside the driver.
function(polyreme_cuda_kernels name)
  cmake_parse_arguments(arg "" "" "ARCHS;SOURCES;OPTIONS;INCLUDES" ${ARGN})
  list(TRANSFORM arg_ARCHS APPEND -real)
  add_library(${name} OBJECT ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${arg_ARCHS}"
    POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(${name} SYSTEM PRIVATE ${arg_INCLUDES})
  target_compile_options(${name} PRIVATE -O3 ${arg_OPTIONS})
endfunction()
