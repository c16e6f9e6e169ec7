#include "coordinator/engine/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <vector>

namespace polyreme::engine {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using Buckets = Histogram::BucketBoundaries;

// vLLM's buckets, so that dashboards made for it draw the same lines.
const Buckets kFirstTokenSeconds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
                                    0.75,  1,     2.5,  5,    7.5,  10,   20,   40,  80,   160};
const Buckets kTokenSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                               0.3,   0.4,    0.5,   0.75, 1,     2.5,  5,     10,  20,   40};
const Buckets kRequestSeconds = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const Buckets kStepSeconds = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
                              0.05,   0.1,    0.2,    0.5,   1,     2,     5,    10};
const Buckets kTokenCounts = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                              1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
const Buckets kDepths = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 65};

// A number under our name and, if asked for, under the one vLLM has for it.
template <class T>
struct Twin {
  T* own = nullptr;
  T* vllm = nullptr;

  template <class F>
  void Each(F f) const {
    f(*own);
    if (vllm != nullptr) f(*vllm);
  }
};

}  // namespace

struct Metrics::Impl {
  Impl(const std::string& model_name, Names given) : names(given) {
    own_labels = {{"model_name", model_name}};
    vllm_labels = {{"model_name", model_name}, {"engine", "0"}};
  }

  template <class Builder>
  auto& MakeFamily(Builder builder, const std::string& name, const std::string& help,
                   const Labels& labels) {
    return builder.Name(name).Help(help).Labels(labels).Register(registry);
  }

  Twin<Counter> MakeCounter(const std::string& name, const std::string& help, bool in_vllm) {
    Twin<Counter> twin;
    twin.own =
        &MakeFamily(prometheus::BuildCounter(), "polyreme_" + name, help, own_labels).Add({});
    if (in_vllm && names == Names::kOwnAndVllm) {
      twin.vllm =
          &MakeFamily(prometheus::BuildCounter(), "vllm:" + name, help, vllm_labels).Add({});
    }
    return twin;
  }
  Twin<Gauge> MakeGauge(const std::string& name, const std::string& help) {
    Twin<Gauge> twin;
    twin.own = &MakeFamily(prometheus::BuildGauge(), "polyreme_" + name, help, own_labels).Add({});
    if (names == Names::kOwnAndVllm) {
      twin.vllm = &MakeFamily(prometheus::BuildGauge(), "vllm:" + name, help, vllm_labels).Add({});
    }
    return twin;
  }
  Twin<Histogram> MakeVllmHistogram(const std::string& name, const std::string& help,
                                    const Buckets& buckets) {
    Twin<Histogram> twin;
    twin.own = MakeHistogram(name, help, buckets);
    if (names == Names::kOwnAndVllm) {
      twin.vllm = &MakeFamily(prometheus::BuildHistogram(), "vllm:" + name, help, vllm_labels)
                       .Add({}, buckets);
    }
    return twin;
  }
  Histogram* MakeHistogram(const std::string& name, const std::string& help,
                           const Buckets& buckets) {
    return &MakeFamily(prometheus::BuildHistogram(), "polyreme_" + name, help, own_labels)
                .Add({}, buckets);
  }
  Family<Counter>* MakeCounters(const std::string& name, const std::string& help) {
    return &MakeFamily(prometheus::BuildCounter(), "polyreme_" + name, help, own_labels);
  }

  prometheus::Registry registry;
  const Names names;
  Labels own_labels;
  Labels vllm_labels;

  Counter* received = nullptr;
  Family<Counter>* refused = nullptr;
  Family<Counter>* keyed = nullptr;
  Family<Counter>* finished = nullptr;
  Family<Counter>* vllm_finished = nullptr;
  Family<Counter>* http = nullptr;
  Twin<Histogram> request_prompt_tokens, request_generation_tokens;
  Twin<Histogram> first_token, inter_token, end_to_end, queue;
  Counter* steps = nullptr;
  Counter* steps_overlapped = nullptr;
  Histogram* step_seconds = nullptr;
  Histogram* step_rows = nullptr;
  Histogram* in_flight = nullptr;
  Twin<Histogram> step_tokens;
  Counter* recoveries = nullptr;
  Histogram* recovery_seconds = nullptr;
  Twin<Gauge> recovering;
  Twin<Gauge> running, waiting, cache_usage;
  Twin<Counter> prompt_tokens, generation_tokens, preemptions, prefix_queries, prefix_hits;

  struct RankTimes {
    Counter* busy = nullptr;
    Counter* waiting = nullptr;
  };
  Family<Counter>* rank_busy = nullptr;
  Family<Counter>* rank_waiting = nullptr;
  std::mutex rank_mutex;
  std::vector<RankTimes> ranks;  // guarded by rank_mutex
};

Metrics::Metrics(const std::string& model_name, Names names)
    : impl_(std::make_unique<Impl>(model_name, names)) {
  Impl& m = *impl_;
  m.received =
      m.MakeCounter("requests_received_total", "Requests submitted to the engine", false).own;
  m.refused = m.MakeCounters("requests_refused_total", "Requests refused, by reason");
  m.keyed = m.MakeCounters("idempotent_requests_total",
                           "Requests with an Idempotency-Key: the first of a key (started), one "
                           "that joined it (joined), had its answer again (replayed), or could "
                           "not (conflict)");
  for (const char* outcome : {"started", "joined", "replayed", "conflict"}) {
    m.keyed->Add({{"outcome", outcome}});  // shown as 0 before the first
  }
  m.finished = m.MakeCounters("request_success_total", "Requests that ended, by reason");
  if (names == Names::kOwnAndVllm) {
    m.vllm_finished = &m.MakeFamily(prometheus::BuildCounter(), "vllm:request_success_total",
                                    "Requests that ended, by reason", m.vllm_labels);
  }
  m.http = m.MakeCounters("http_responses_total", "HTTP responses, by route and status code");
  m.request_prompt_tokens =
      m.MakeVllmHistogram("request_prompt_tokens", "Prompt tokens of a request", kTokenCounts);
  m.request_generation_tokens =
      m.MakeVllmHistogram("request_generation_tokens", "Output tokens of a request", kTokenCounts);
  m.first_token = m.MakeVllmHistogram("time_to_first_token_seconds",
                                      "From submission to the first token", kFirstTokenSeconds);
  m.inter_token = m.MakeVllmHistogram("inter_token_latency_seconds",
                                      "Between two tokens of one choice", kTokenSeconds);
  m.end_to_end = m.MakeVllmHistogram("e2e_request_latency_seconds", "From submission to the end",
                                     kRequestSeconds);
  m.queue = m.MakeVllmHistogram("request_queue_time_seconds",
                                "From submission until first scheduled", kRequestSeconds);
  m.steps = m.MakeCounter("steps_total", "Steps committed", false).own;
  m.steps_overlapped = m.MakeCounter("steps_overlapped_total",
                                     "Steps submitted while an earlier step was in flight", false)
                           .own;
  m.step_seconds =
      m.MakeHistogram("step_seconds", "From submission of a step to its commit", kStepSeconds);
  m.step_rows = m.MakeHistogram("step_rows", "Rows of a step", kTokenCounts);
  m.in_flight =
      m.MakeHistogram("steps_in_flight", "Steps in flight when one is submitted, with it", kDepths);
  m.step_tokens = m.MakeVllmHistogram("iteration_tokens_total", "Tokens of a step", kTokenCounts);
  m.recoveries =
      m.MakeCounter("recoveries_total", "Epochs that were lost and followed by another", false).own;
  m.recovery_seconds = m.MakeHistogram(
      "recovery_seconds", "From the loss of an epoch until the next one serves", kRequestSeconds);
  m.recovering = m.MakeGauge("recovering", "1 while workers come back, 0 while serving");
  m.running = m.MakeGauge("num_requests_running", "Sequences running");
  m.waiting = m.MakeGauge("num_requests_waiting", "Sequences waiting");
  m.cache_usage = m.MakeGauge("kv_cache_usage_perc", "Share of the cache's blocks in use, 0 to 1");
  m.prompt_tokens = m.MakeCounter("prompt_tokens_total", "Prompt tokens taken in", true);
  m.generation_tokens = m.MakeCounter("generation_tokens_total", "Output tokens", true);
  m.preemptions = m.MakeCounter("num_preemptions_total", "Sequences sent back to waiting", true);
  m.prefix_queries = m.MakeCounter("prefix_cache_queries_total",
                                   "Prompt tokens looked up in the prefix cache", true);
  m.prefix_hits =
      m.MakeCounter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache", true);
  m.rank_busy = m.MakeCounters("rank_busy_seconds_total", "Time a rank computed");
  m.rank_waiting = m.MakeCounters("rank_waiting_seconds_total",
                                  "Time a rank waited for other ranks inside steps");
}

Metrics::~Metrics() = default;

void Metrics::RequestReceived() {
  impl_->received->Increment();
}

void Metrics::RequestRefused(const char* reason) {
  impl_->refused->Add({{"reason", reason}}).Increment();
}

void Metrics::KeyedRequest(const char* outcome) {
  impl_->keyed->Add({{"outcome", outcome}}).Increment();
}

void Metrics::RequestFinished(const char* finish_reason, int32_t prompt_tokens,
                              int32_t output_tokens) {
  const Labels labels = {{"finished_reason", finish_reason}};
  impl_->finished->Add(labels).Increment();
  if (impl_->vllm_finished != nullptr) impl_->vllm_finished->Add(labels).Increment();
  impl_->request_prompt_tokens.Each([&](Histogram& h) { h.Observe(prompt_tokens); });
  impl_->request_generation_tokens.Each([&](Histogram& h) { h.Observe(output_tokens); });
}

void Metrics::ObserveTimeToFirstToken(absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  impl_->first_token.Each([&](Histogram& h) { h.Observe(seconds); });
}

void Metrics::ObserveInterToken(absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  impl_->inter_token.Each([&](Histogram& h) { h.Observe(seconds); });
}

void Metrics::ObserveEndToEnd(absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  impl_->end_to_end.Each([&](Histogram& h) { h.Observe(seconds); });
}

void Metrics::ObserveQueueTime(absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  impl_->queue.Each([&](Histogram& h) { h.Observe(seconds); });
}

void Metrics::StepCommitted(int32_t num_tokens, int32_t num_rows, absl::Duration elapsed) {
  impl_->steps->Increment();
  impl_->step_seconds->Observe(absl::ToDoubleSeconds(elapsed));
  impl_->step_rows->Observe(num_rows);
  impl_->step_tokens.Each([&](Histogram& h) { h.Observe(num_tokens); });
}

void Metrics::ObserveInFlight(int32_t steps) {
  impl_->in_flight->Observe(steps);
  if (steps > 1) impl_->steps_overlapped->Increment();
}

void Metrics::AddRankTime(int32_t rank, absl::Duration busy, absl::Duration waiting) {
  const std::lock_guard lock(impl_->rank_mutex);
  const size_t index = static_cast<size_t>(rank);
  if (impl_->ranks.size() <= index) impl_->ranks.resize(index + 1);
  Impl::RankTimes& times = impl_->ranks[index];
  if (times.busy == nullptr) {
    const Labels labels = {{"rank", std::to_string(rank)}};
    times = {&impl_->rank_busy->Add(labels), &impl_->rank_waiting->Add(labels)};
  }
  times.busy->Increment(absl::ToDoubleSeconds(busy));
  times.waiting->Increment(absl::ToDoubleSeconds(waiting));
}

void Metrics::SetRunning(int32_t running, int32_t waiting) {
  impl_->running.Each([&](Gauge& g) { g.Set(running); });
  impl_->waiting.Each([&](Gauge& g) { g.Set(waiting); });
}

void Metrics::SetCacheUsage(double fraction) {
  impl_->cache_usage.Each([&](Gauge& g) { g.Set(fraction); });
}

void Metrics::AddPromptTokens(int64_t tokens) {
  impl_->prompt_tokens.Each([&](Counter& c) { c.Increment(static_cast<double>(tokens)); });
}

void Metrics::AddGenerationTokens(int64_t tokens) {
  impl_->generation_tokens.Each([&](Counter& c) { c.Increment(static_cast<double>(tokens)); });
}

void Metrics::AddPreemptions(int64_t count) {
  impl_->preemptions.Each([&](Counter& c) { c.Increment(static_cast<double>(count)); });
}

void Metrics::Recovering() {
  impl_->recovering.Each([](Gauge& g) { g.Set(1); });
}

void Metrics::Recovered(absl::Duration elapsed) {
  impl_->recovering.Each([](Gauge& g) { g.Set(0); });
  impl_->recoveries->Increment();
  impl_->recovery_seconds->Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::AddPrefixCache(int64_t queries, int64_t hits) {
  impl_->prefix_queries.Each([&](Counter& c) { c.Increment(static_cast<double>(queries)); });
  impl_->prefix_hits.Each([&](Counter& c) { c.Increment(static_cast<double>(hits)); });
}

void Metrics::HttpResponse(const std::string& route, int code) {
  impl_->http->Add({{"route", route}, {"code", std::to_string(code)}}).Increment();
}

std::string Metrics::Render() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace polyreme::engine
