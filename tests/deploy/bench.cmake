polyreme_test(deploy_bench_test
  SOURCES bench_ops_test.cc bench_cluster_test.cc roofline_test.cc
  DEPS polyreme_bench)
# The client of `bench sweep` and `bench serve`, against a server whose delays are known.
polyreme_test(deploy_bench_client_test
  SOURCES bench_dataset_test.cc bench_load_test.cc bench_parsers_test.cc bench_report_test.cc
          fake_server.cc
  DEPS polyreme_bench Boost::headers)
# Not a test: what the client's own capacity is measured against (docs/benchmarks/README.md).
add_executable(bench_null_server null_server_main.cc fake_server.cc)
target_link_libraries(bench_null_server PRIVATE polyreme_bench Boost::headers)
polyreme_compile_options(bench_null_server)
