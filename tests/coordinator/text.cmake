polyreme_test(coordinator_text_test
  SOURCES
    text_detokenizer_test.cc text_normalizer_test.cc text_reference_test.cc text_regex_test.cc
    text_stop_matcher_test.cc text_tokenizer_load_test.cc text_tokenizer_test.cc text_utf8_test.cc
  DEPS polyreme_text
  LABELS memory)
