// Counters, gauges and histograms of the coordinator, on prometheus-cpp. Names are polyreme_*; the
// vllm: names that dashboards know are added by a switch. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"

namespace polyreme::engine {

class Metrics {
 public:
  // model_name becomes a label. vllm_names: also emit the vllm: spellings.
  enum class Names { kOwn, kOwnAndVllm };
  Metrics(const std::string& model_name, Names names);
  ~Metrics();

  // Requests.
  void RequestReceived();
  void RequestRefused(const char* reason);  // "full", "invalid", "unavailable"
  // A request with an Idempotency-Key: "started", "joined", "replayed", "conflict".
  void KeyedRequest(const char* outcome);
  void RequestFinished(const char* finish_reason, int32_t prompt_tokens, int32_t output_tokens);
  void ObserveTimeToFirstToken(absl::Duration elapsed);
  void ObserveInterToken(absl::Duration elapsed);
  void ObserveEndToEnd(absl::Duration elapsed);
  void ObserveQueueTime(absl::Duration elapsed);
  // Engine.
  void StepCommitted(int32_t num_tokens, int32_t num_rows, absl::Duration elapsed);
  void ObserveInFlight(int32_t steps);  // how deep plans ran ahead, at each submit
  void AddRankTime(int32_t rank, absl::Duration busy, absl::Duration waiting);
  void SetRunning(int32_t running, int32_t waiting);
  void SetCacheUsage(double fraction);
  void AddPromptTokens(int64_t tokens);
  void AddGenerationTokens(int64_t tokens);
  void AddPreemptions(int64_t count);
  void Recovering();                                   // an epoch was lost
  void Recovered(absl::Duration elapsed);              // and the next one serves
  void AddPrefixCache(int64_t queries, int64_t hits);  // in tokens
  // HTTP.
  void HttpResponse(const std::string& route,
                    int code);  // route from the route table, never from the client

  // Prometheus text format.
  std::string Render() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::engine
