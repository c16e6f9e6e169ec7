// A server of the OpenAI interface without a model: answers as it is told, at the times it is told,
// and writes down when it did. On a thread of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace polyreme::bench {

struct FakeServerOptions {
  std::string model = "fake";
  int32_t port = 0;  // 0: any free one
  int32_t max_model_len = 4096;
  // Nanoseconds from a request's arrival to its chunk, both counted from 0; must not decrease with
  // `chunk`.
  std::function<int64_t(int64_t request, int32_t chunk)> when = [](int64_t, int32_t) { return 0; };
  int32_t num_chunks = 0;   // of each answer; 0: as many as max_tokens says
  bool sends_usage = true;  // where it is asked for
  bool keeps_alive = true;
  bool records = true;  // served() has the times
  int64_t cuts = -1;    // the request whose connection is closed behind its first chunk
  std::string api_key;  // required, if not empty
  std::string metrics;  // what GET /metrics says
};

class FakeServer {
 public:
  // By NowNanos().
  struct Served {
    int64_t arrived_ns = 0;
    std::vector<int64_t> chunks_ns;
  };

  explicit FakeServer(FakeServerOptions options);
  ~FakeServer();

  int32_t port() const;
  std::string url() const;
  // By X-Request-Id.
  std::map<std::string, Served> served() const;
  int64_t num_requests() const;  // generations begun
  int64_t num_connections() const;
  std::vector<std::string> bodies() const;  // of the first 64 generations

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::bench
