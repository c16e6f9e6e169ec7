# The three functions every CMakeLists.txt of this tree is made of.

# polyreme_add_modules(dir...): adds each folder that has a CMakeLists.txt, in the order given.
function(polyreme_add_modules)
  foreach(dir IN LISTS ARGN)
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/CMakeLists.txt)
      add_subdirectory(${dir})
    endif()
  endforeach()
endfunction()

function(polyreme_compile_options target)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wno-sign-conversion
    $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
  if(POLYREME_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  if(POLYREME_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${POLYREME_SANITIZE} -fno-omit-frame-pointer -g1)
    if(NOT POLYREME_SANITIZE MATCHES fuzzer)
      target_compile_options(${target} PUBLIC -O1)  # -O2 of code full of checks takes twice as long to compile
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${POLYREME_SANITIZE})
  endif()
endfunction()

# polyreme_library(name SOURCES a.cc ... DEPS target ...): one row of docs/layers.txt.
function(polyreme_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(arg_SOURCES)
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(${name} PUBLIC ${arg_DEPS})
    polyreme_compile_options(${name})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${arg_DEPS})
  endif()
endfunction()

# polyreme_test(name SOURCES a_test.cc ... DEPS target ... [TIMEOUT seconds] [LABELS a+b+...]
#               [ENVIRONMENT K=V ...]): one test binary; ctest sees each of its cases. The target suite_LABEL builds
#               all of one label.
function(polyreme_test name)
  cmake_parse_arguments(arg "" "TIMEOUT;LABELS" "SOURCES;DEPS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  polyreme_compile_options(${name})
  target_compile_definitions(${name} PRIVATE POLYREME_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  set(properties TIMEOUT ${arg_TIMEOUT})
  if(arg_LABELS)
    # gtest_discover_tests cannot pass on a list; ctest -L finds a label within another.
    list(APPEND properties LABELS ${arg_LABELS})
  endif()
  string(REPLACE "+" ";" labels "${arg_LABELS}")
  foreach(label IN LISTS labels)
    if(NOT TARGET suite_${label})
      add_custom_target(suite_${label})
    endif()
    add_dependencies(suite_${label} ${name})
  endforeach()
  if(arg_ENVIRONMENT)
    list(APPEND properties ENVIRONMENT ${arg_ENVIRONMENT})
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES ${properties})
endfunction()
