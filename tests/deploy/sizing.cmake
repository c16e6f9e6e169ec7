polyreme_test(deploy_sizing_test
  SOURCES sizing_allocator_test.cc sizing_cli_test.cc sizing_files_test.cc sizing_model_test.cc
          sizing_plan_test.cc sizing_roofline_test.cc
  DEPS polyreme_cli polyreme_sizing
  TIMEOUT 240)
# docs/sizing.md is the program's own output.
add_test(NAME Sizing.PageIsWhatTheProgramPrints
  COMMAND ${PROJECT_SOURCE_DIR}/scripts/make_sizing.sh --check $<TARGET_FILE:polyreme>)
