polyreme_test(coordinator_text_test
  SOURCES text_tokenizer_test.cc text_tokenizer_load_test.cc
  DEPS polyreme_text)
