# Layering, sizes, dead files, dead tests: rules that are run.
find_program(POLYREME_PYTHON python3 REQUIRED)
add_test(NAME Tidy.LayersSizesAndDeadFiles
  COMMAND ${POLYREME_PYTHON} ${PROJECT_SOURCE_DIR}/scripts/tidy.py ${PROJECT_SOURCE_DIR})
