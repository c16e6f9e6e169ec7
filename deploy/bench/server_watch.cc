#include "deploy/bench/server_watch.h"

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "deploy/bench/http_client.h"

namespace polyreme::bench {
namespace {

constexpr std::string_view kCacheGauges[] = {
    "polyreme_kv_cache_usage_perc", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc",
    "sglang:token_usage", "llamacpp:kv_cache_usage_ratio"};
constexpr auto kInterval = std::chrono::milliseconds(500);
constexpr absl::Duration kPatience = absl::Seconds(5);

void Raise(double& peak, double value) {
  if (std::isfinite(value) && !(peak >= value)) peak = value;
}

}  // namespace

double CacheUsageOf(std::string_view metrics) {
  double highest = std::numeric_limits<double>::quiet_NaN();
  while (!metrics.empty()) {
    const size_t end = metrics.find('\n');
    const std::string_view line = metrics.substr(0, end);
    metrics.remove_prefix(end == std::string_view::npos ? metrics.size() : end + 1);
    for (const std::string_view gauge : kCacheGauges) {
      if (!line.starts_with(gauge)) continue;
      const std::string_view rest = line.substr(gauge.size());
      if (rest.empty() || (rest[0] != '{' && rest[0] != ' ')) continue;
      const size_t space = rest.rfind("} ");
      const std::string value(rest.substr(space == std::string_view::npos ? 1 : space + 2));
      char* parsed = nullptr;
      const double number = std::strtod(value.c_str(), &parsed);
      if (parsed != value.c_str()) Raise(highest, number);
    }
  }
  return highest;
}

ServerWatch::ServerWatch(OpenAiTarget target, std::function<double()> memory)
    : target_(std::move(target)), memory_(std::move(memory)), thread_([this] { Run(); }) {}

ServerWatch::~ServerWatch() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

ServerWatch::Peaks ServerWatch::TakePeaks() {
  Look();  // so that even a short time has been looked at once
  const std::lock_guard lock(mutex_);
  return std::exchange(peaks_, {});
}

void ServerWatch::Run() {
  std::unique_lock lock(mutex_);
  while (!ends_) {
    lock.unlock();
    Look();
    lock.lock();
    changed_.wait_for(lock, kInterval, [this] { return ends_; });
  }
}

void ServerWatch::Look() {
  double usage = std::numeric_limits<double>::quiet_NaN();
  const std::string request = GetRequest(target_.url, "/metrics", target_.headers());
  if (const auto reply = Fetch(target_.url, request, kPatience); reply.ok() && reply->code == 200) {
    usage = CacheUsageOf(reply->body);
  }
  const double memory = memory_ ? memory_() : std::numeric_limits<double>::quiet_NaN();
  const std::lock_guard lock(mutex_);
  Raise(peaks_.cache_usage, usage);
  Raise(peaks_.memory_bytes, memory);
}

}  // namespace polyreme::bench
