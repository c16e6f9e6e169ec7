polyreme_test(coordinator_template_test
  SOURCES chat_template_test.cc chat_template_limits_test.cc chat_template_files_test.cc
  DEPS polyreme_text
  LABELS memory)
