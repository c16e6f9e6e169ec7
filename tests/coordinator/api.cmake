polyreme_test(coordinator_api_test
  SOURCES api/http_parser_test.cc api/http_server_test.cc api/raw_client.cc
  DEPS polyreme_api)
