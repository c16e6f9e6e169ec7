// The engine thread: mailbox -> Plan -> Submit -> Await -> Commit -> output. It owns the scheduler,
// every sequence and the list of steps in flight; everything else talks to it through Submit and
// TokenStream::Cancel.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "coordinator/engine/worker_link.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::text {
class Tokenizer;
}

namespace polyreme::engine {

class Metrics;

struct EngineOptions {
  step::StepLimits limits;
  int32_t stages = 1;          // pipeline stages: cohorts, and stages + 1 steps in flight
  int32_t max_num_seqs = 256;  // sequences running at once
  int32_t max_num_batched_tokens = 2048;  // tokens of one step
  bool enable_prefix_caching = true;
  int32_t max_waiting = limits::kMaxWaitingSequences;
  int32_t stream_capacity = limits::kTokenStreamCapacity;
  absl::Duration step_patience = limits::kStepPatience;
  absl::Duration stop_patience =
      limits::kEngineStopPatience;  // for a step that runs when the engine is stopped
  Epoch epoch{1};
  std::optional<uint64_t>
      seed;  // of the seeds drawn for requests without one; absent: from the system
};

// A snapshot for /health and for people.
struct EngineHealth {
  bool serving = false;  // accepts requests and steps make progress
  std::string reason;    // why not
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int64_t steps_committed = 0;
  absl::Duration since_progress;  // since the last commit while work is pending; zero when idle
};

class Engine {
 public:
  // All borrowed and outliving the engine. The tokenizer turns tokens into text.
  Engine(const EngineOptions& options, const ModelLimits& model, WorkerLink& link,
         const text::Tokenizer& tokenizer, const Clock& clock, Metrics& metrics);
  ~Engine();

  // Starts the engine thread.
  void Start();
  // Validates and queues. InvalidArgument; ResourceExhausted when the mailbox or the waiting list
  // is full (429, at once); Unavailable while draining or after a failure. Any thread.
  // DeadlineExceeded when the deadline has passed already.
  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerateRequest request);
  // What Submit would say to any request now: ResourceExhausted, Unavailable or ok. So cheap that
  // it can be asked before a request is even read. Any thread.
  absl::Status CheckRoom() const;
  // Stops admitting; what runs may finish until `deadline`, the rest ends with Unavailable. Returns
  // when the engine is idle or at the deadline. Any thread.
  void Drain(absl::Time deadline);
  // Ends the thread; open streams close with Unavailable.
  void Stop();
  EngineHealth health() const;
  // The error that ended the engine, or ok. The coordinator's main waits for it.
  absl::Status WaitUntilFailed(absl::Time deadline);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::engine
