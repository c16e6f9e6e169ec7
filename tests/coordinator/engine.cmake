polyreme_test(coordinator_engine_test
  SOURCES engine_core_test.cc engine_property_test.cc engine_test.cc pulsed_link_test.cc request_test.cc scripted_link.cc token_stream_test.cc
  DEPS polyreme_engine
  LABELS threads+memory)
polyreme_test(coordinator_peers_test
  SOURCES cache_size_test.cc peers_test.cc standstill_test.cc
  DEPS polyreme_cluster
  LABELS threads)
polyreme_test(coordinator_takeover_test
  SOURCES takeover_test.cc
  DEPS polyreme_cluster polyreme_worker
  LABELS threads)
