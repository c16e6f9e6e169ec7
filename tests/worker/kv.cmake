polyreme_test(worker_kv_test
  SOURCES kv_cache_test.cc
  DEPS polyreme_kv polyreme_backend
  LABELS memory)
