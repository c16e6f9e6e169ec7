// Small limits, a clock that moves by hand, and a reader of streams, for tests of the engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine/engine_core.h"
#include "tests/coordinator/scripted_link.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::engine {

class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

inline EngineOptions SmallEngine() {
  EngineOptions options;
  options.limits = {.num_slots = 8,
                    .num_blocks = 64,
                    .tokens_per_block = 4,
                    .max_step_tokens = 32,
                    .max_step_samples = 32,
                    .max_model_len = 64,
                    .vocabulary = 262,
                    .max_steps_in_flight = 2};
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 32;
  options.max_waiting = 16;
  options.stop_patience = absl::Milliseconds(50);
  options.seed = 1;
  return options;
}

inline ModelLimits SmallModel() {
  return {.model_name = "tiny",
          .max_model_len = 64,
          .vocabulary = 262,
          .eos_tokens = {ScriptedLink::kEnd},
          .max_choices = 8,
          .max_logprobs = 5};
}

// A prompt of `length` tokens that begins with `key`.
inline GenerateRequest Ask(TokenId key, int32_t length, int32_t max_tokens) {
  GenerateRequest request;
  request.prompt.assign(static_cast<size_t>(length), 'p');
  request.prompt[0] = key;
  request.max_tokens = max_tokens;
  return request;
}

// All that a stream has given so far.
struct Received {
  std::string text;
  std::vector<TokenId> tokens;
  std::vector<OutputPiece> pieces;
  FinishReason finish = FinishReason::kNone;
  bool ended = false;
  absl::Status status;      // why it ended
};

// What is in the stream now, added to `received`; pieces of choice `choice` only.
inline void ReadNow(TokenStream& stream, Received& received, int32_t choice = 0) {
  while (true) {
    TokenStream::Polled polled = stream.Poll();
    if (!polled.ready) return;
    if (!polled.piece.ok() || !polled.piece->has_value()) {
      received.ended = true;
      received.status = polled.piece.status();
      return;
    }
    OutputPiece& piece = **polled.piece;
    if (piece.choice != choice) continue;
    received.text += piece.text;
    received.tokens.insert(received.tokens.end(), piece.tokens.begin(), piece.tokens.end());
    if (piece.finish != FinishReason::kNone) received.finish = piece.finish;
    received.pieces.push_back(std::move(piece));
  }
}

// Waits for the end of a stream.
inline Received ReadAll(TokenStream& stream) {
  Received received;
  while (true) {
    auto piece = stream.Next(MonotonicNow() + absl::Seconds(30));
    if (!piece.ok() || !piece->has_value()) {
      received.ended = true;
      received.status = piece.status();
      return received;
    }
    received.text += (*piece)->text;
    received.tokens.insert(received.tokens.end(), (*piece)->tokens.begin(), (*piece)->tokens.end());
    if ((*piece)->finish != FinishReason::kNone) received.finish = (*piece)->finish;
    received.pieces.push_back(*std::move(*piece));
  }
}

// A core over scripted workers, without a thread.
class CoreHarness {
 public:
  explicit CoreHarness(const EngineOptions& given = SmallEngine())
      : options(given), link(given.limits), tokenizer(text::LoadOrDie(text::TinyTokenizerJson())),
        metrics("tiny", Metrics::Names::kOwnAndVllm) {
    core = std::make_unique<EngineCore>(
        options, SmallModel(), EngineCore::Parts{link, *tokenizer, clock, metrics, signals}, 1);
  }

  std::shared_ptr<TokenStream> Submit(GenerateRequest request, int32_t capacity = 100) {
    const absl::Status valid = Validate(request, SmallModel());
    CHECK(valid.ok(), "{}", Message(valid));
    auto stops = text::StopMatcher::Make(request.stop);
    CHECK(stops.ok());
    signals->num_queued += request.n;
    auto stream = std::make_shared<TokenStream>(capacity, [s = signals] { ++s->num_cancels; });
    core->Accept({std::move(request), *std::move(stops), stream, clock.Now()});
    return stream;
  }
  // Rounds until nothing is in flight.
  void RunToEnd() {
    do {
      const absl::Status status = core->RunOnce();
      CHECK(status.ok(), "{}", Message(status));
    } while (!core->idle());
  }
  // The value of a metric as it stands in the text, or "".
  std::string MetricLine(const std::string& begin) const {
    const std::string all = metrics.Render();
    const size_t at = all.find("\n" + begin);
    if (at == std::string::npos) return "";
    const size_t end = all.find('\n', at + 1);
    const std::string line = all.substr(at + 1, end - at - 1);
    return line.substr(line.rfind(' ') + 1);
  }

  const EngineOptions options;
  HandClock clock;
  ScriptedLink link;
  std::unique_ptr<const text::Tokenizer> tokenizer;
  Metrics metrics;
  std::shared_ptr<EngineSignals> signals = std::make_shared<EngineSignals>();
  std::unique_ptr<EngineCore> core;
};

}  // namespace polyreme::engine
