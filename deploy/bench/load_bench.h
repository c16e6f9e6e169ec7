// What `bench sweep` and `bench serve` have in common: one load against one server, repeated, with
// its figures and a line of progress.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "deploy/bench/dataset.h"
#include "deploy/bench/figures.h"
#include "deploy/bench/load.h"
#include "deploy/bench/openai_client.h"
#include "deploy/bench/report.h"
#include "deploy/bench/server_watch.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct LoadBenchOptions {
  OpenAiTarget target;        // its model is the one that is served
  int32_t max_model_len = 0;  // the server's; 0: unknown
  int32_t num_threads = 1;    // of the client
  int32_t num_warmups = 1;    // requests that are not measured; the first tells of bad input
  Slo slo;
  absl::Duration silence_deadline = absl::Minutes(10);
  // Bytes of memory that the server's devices have in use; empty: unknown.
  std::function<double()> memory;
};

// One repetition.
struct LoadRound {
  LoadFigures figures;
  ClientCost client;
  ServerWatch::Peaks peaks;
  std::vector<RequestRecord> records;
  bool interrupted = false;
  absl::Status lost;  // the server is gone: its last requests failed, and nobody answers any more
};

class LoadBench {
 public:
  explicit LoadBench(const LoadBenchOptions& options);

  // Refuses prompts that cannot be served, as far as lengths are known, and sends the warm-ups.
  // InvalidArgument or Unavailable with the server's own sentence.
  absl::Status Prepare(const std::vector<PromptEntry>& prompts);

  // `concurrency`: 0 unbounded. `times`: seconds at which each prompt is sent, or empty: whenever
  // there is room. `title`: in the line of progress.
  absl::StatusOr<LoadRound> Run(const std::string& title, const std::vector<PromptEntry>& prompts,
                                const std::vector<double>& times, int32_t concurrency);

 private:
  absl::Status WhyLost(const std::string& title, const LoadResult& result) const;
  absl::StatusOr<std::vector<RequestSpec>> SpecsOf(const std::vector<PromptEntry>& prompts,
                                                   const std::vector<double>& times) const;
  LoadOptions LoadOptionsOf(int32_t concurrency) const;

  const LoadBenchOptions options_;
  ServerWatch watch_;
};

// All that is kept of a round.
Metrics MetricsOf(const LoadRound& round);
// A line of requests.jsonl.
Json RequestJson(const std::string& point, int32_t round, const RequestRecord& record);
// The median over rounds of one metric; NaN if none has it.
double MedianOf(const ReportPoint& point, std::string_view metric);
double LowestOf(const ReportPoint& point, std::string_view metric);
double HighestOf(const ReportPoint& point, std::string_view metric);
// What there is to say of rounds besides their figures: errors, how tokens were counted, and what
// the client itself took.
std::string NotesOf(const std::vector<const LoadRound*>& rounds);

}  // namespace polyreme::bench
