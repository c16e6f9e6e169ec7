polyreme_test(deploy_bench_test
  SOURCES bench_ops_test.cc bench_cluster_test.cc roofline_test.cc
  DEPS polyreme_bench)
