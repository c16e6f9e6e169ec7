polyreme_test(coordinator_api_test
  SOURCES
    api/chat_test.cc api/completions_test.cc api/engine_behind_test.cc api/grpc_idempotency_test.cc api/grpc_test.cc
    api/http_parser_test.cc api/http_server_test.cc api/idempotency_test.cc api/raw_client.cc api/routes_test.cc
  DEPS polyreme_api
  LABELS threads)
# Replaces operator new.
polyreme_test(coordinator_out_of_memory_test
  SOURCES api/failing_allocation.cc api/out_of_memory_test.cc api/raw_client.cc stream_out_of_memory_test.cc
  DEPS polyreme_api polyreme_cluster polyreme_worker polyreme_scheduler_harness
  LABELS threads)
