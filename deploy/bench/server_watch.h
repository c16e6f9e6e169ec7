// What the server says of itself meanwhile: its /metrics, asked every half second beside the load.
#pragma once

#include <condition_variable>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "deploy/bench/openai_client.h"

namespace polyreme::bench {

// The highest value of the gauges in a Prometheus text that tell the share of cache in use, 0 to 1:
// polyreme's, vLLM's, SGLang's and llama.cpp's. NaN if there is none.
double CacheUsageOf(std::string_view metrics);

class ServerWatch {
 public:
  struct Peaks {
    double cache_usage = std::numeric_limits<double>::quiet_NaN();   // 0 to 1
    double memory_bytes = std::numeric_limits<double>::quiet_NaN();  // of all devices
  };

  // memory: bytes in use now, NaN if unknown; called on the watch's thread. May be empty.
  ServerWatch(OpenAiTarget target, std::function<double()> memory);
  ~ServerWatch();
  ServerWatch(const ServerWatch&) = delete;
  ServerWatch& operator=(const ServerWatch&) = delete;

  // Since the last call. Looks once more, so that it may take as long as the server to answer.
  Peaks TakePeaks();

 private:
  void Run();
  void Look();

  const OpenAiTarget target_;
  const std::function<double()> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ends_ = false;  // guarded by mutex_
  Peaks peaks_;        // guarded by mutex_
  std::thread thread_;
};

}  // namespace polyreme::bench
