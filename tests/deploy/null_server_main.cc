// A server that streams so many chunks a second on so many streams and does nothing else: what the
// client of `polyreme bench` can take is measured against it. Runs until its standard input ends.
//
//   bench_null_server PORT MILLISECONDS_BETWEEN_CHUNKS [SECONDS_BEFORE_THE_FIRST]
//
// With seconds before the first chunk all streams are there before any of them is a load.

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "tests/deploy/fake_server.h"

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fputs("usage: bench_null_server PORT MILLISECONDS [SECONDS]\n", stderr);
    return 2;
  }
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const auto gap_ns = static_cast<int64_t>(std::atof(argv[2]) * 1e6);
  const auto first_ns = argc == 4 ? static_cast<int64_t>(std::atof(argv[3]) * 1e9) : int64_t{0};
  polyreme::bench::FakeServerOptions options;
  options.model = "null";
  options.port = std::atoi(argv[1]);
  options.max_model_len = 1 << 20;
  options.records = false;
  // Streams are spread over the gap, so that chunks come evenly.
  options.when = [gap_ns, first_ns](int64_t request, int32_t chunk) {
    return first_ns + gap_ns * (chunk + 1) + request * 7919 % 1000 * (gap_ns / 1000);
  };
  const polyreme::bench::FakeServer server(options);
  fmt::print("{}\n", server.url());
  std::fflush(stdout);
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{} requests, {} connections, {:.1f} s of CPU time\n", server.num_requests(),
             server.num_connections(),
             static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec));
  return 0;
}
