// Sends a list of requests to a server, each at its time or as soon as there is room, and records
// what came back.
//
// Open loop: a request has a time, and all of its delays count from there, also when it could only
// be sent later (docs/decisions/0018-open-loop.md). Closed loop: `concurrency` requests are always
// under way, and the next one's time is when there was room for it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "deploy/bench/http_url.h"
#include "deploy/bench/request_record.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct RequestSpec {
  static constexpr int64_t kWhenThereIsRoom = -1;
  int64_t intended_ns = kWhenThereIsRoom;  // since the load's start; in ascending order
  std::string body;
  int32_t prompt = 0;         // in the data set
  int32_t prompt_tokens = 0;  // 0: unknown
};

struct LoadOptions {
  HttpUrl url;
  std::string path;         // "/v1/completions"
  std::string headers;      // of every request, whole lines
  int32_t concurrency = 0;  // requests under way at most; 0: as many as there are connections
  int32_t max_connections = 8192;  // over all threads; also what concurrency may be at most
  int32_t num_threads = 1;
  absl::Duration silence_deadline = absl::Minutes(10);
  absl::Duration deadline = absl::Hours(24);  // of the whole load
};

// While it runs.
struct LoadProgress {
  int64_t total = 0;
  int64_t sent = 0;
  int64_t done = 0;
  int64_t failed = 0;
  int64_t chunks = 0;
  double seconds = 0;
};

// What the client itself took: whether it, and not the server, was measured.
struct ClientCost {
  int32_t num_threads = 0;
  double cpu_seconds = 0;  // of its threads
  double wall_seconds = 0;
  double lag_p50_ms = 0;  // how late its event loop came to a timer of 10 ms
  double lag_p99_ms = 0;
  double lag_max_ms = 0;
  double late_p99_ms = 0;  // how late requests were sent
  double late_max_ms = 0;
  int64_t connections = 0;
  double share() const { return wall_seconds > 0 ? cpu_seconds / wall_seconds : 0; }
};

struct LoadResult {
  std::vector<RequestRecord> records;  // of each spec, in its order
  ClientCost client;
  double seconds = 0;        // from the start to the last answer's end
  bool interrupted = false;  // by Interrupted() or the deadline: what was under way is cancelled
};

// Blocks until all have ended. `on_progress` is called a few times a second on this thread.
// Unavailable: the address cannot be found. ResourceExhausted: more connections than files may be
// open. Failures of requests are in their records.
absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, std::vector<RequestSpec> specs,
                                   const std::function<void(const LoadProgress&)>& on_progress);

}  // namespace polyreme::bench
