// Bounded hand-over of output from the engine to one client: all choices of one request, in the
// order they happen.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::engine {

enum class FinishReason { kNone, kStop, kLength, kAbort };

// Log-probabilities of one token, with the text each token stands for left to the face (token ids
// and the tokenizer).
struct TokenScore {
  TokenId token = 0;
  float logprob = 0;
  int32_t rank = 0;
  std::vector<step::TokenLogprob> top;
};

// What one choice gained in one step: whole characters only.
struct OutputPiece {
  int32_t choice = 0;
  std::string text;                // may be empty while characters or stop strings are incomplete
  std::vector<TokenId> tokens;     // counted output tokens of this piece
  std::vector<TokenScore> scores;  // one per token, if asked for
  FinishReason finish = FinishReason::kNone;
  std::optional<std::string> stop_string;  // which stop string ended it
  std::optional<TokenId> stop_token;  // which stop_token_ids entry ended it (not end-of-sequence)
  absl::Status error;  // of this choice alone, for example non-finite logits (finish is kAbort)
  // Set once, in the first piece of choice 0, when prompt_logprobs was asked: entry 0 is for prompt
  // token 1.
  std::vector<TokenScore> prompt_scores;
  int32_t num_cached_tokens = 0;  // prompt tokens found in the cache; in the first piece
};

// One producer (engine thread), one consumer (I/O). Bounded: a client that does not read loses its
// generation, not the server. Thread-safe.
class TokenStream {
 public:
  // capacity in pieces, > 0. on_cancel is called once, by Cancel, and must not block.
  explicit TokenStream(int32_t capacity, std::function<void()> on_cancel = nullptr);

  // Engine. False: full or cancelled; the engine then cancels the generation.
  bool Push(OutputPiece piece);
  // Engine, and who watches its deadline. ok: all choices finished. Otherwise the reason that ended
  // everything. The first call counts.
  void Close(absl::Status why);

  // Consumer. The next piece; nullopt: closed ok and drained; the close status otherwise;
  // DeadlineExceeded.
  absl::StatusOr<std::optional<OutputPiece>> Next(absl::Time deadline);
  // As Next without waiting, for event loops. ready is false if nothing is there yet.
  struct Polled {
    bool ready = false;
    absl::StatusOr<std::optional<OutputPiece>> piece = std::optional<OutputPiece>();
  };
  Polled Poll();
  // `notify` is called whenever something becomes readable, from the writer's thread, and at once
  // if something is. It must not block or call this stream. When SetNotify returns, the one set
  // before is not running and never runs again.
  void SetNotify(std::function<void()> notify);
  // Consumer is gone; any thread. The engine frees the generation's blocks within one step.
  void Cancel();
  bool cancelled() const;

 private:
  void NotifyLocked();
  // Something is readable.
  absl::StatusOr<std::optional<OutputPiece>> TakeLocked();

  const size_t capacity_;
  const std::function<void()> on_cancel_;
  mutable std::mutex mutex_;
  std::condition_variable readable_;
  std::deque<OutputPiece> pieces_;      // guarded by mutex_
  std::optional<absl::Status> closed_;  // guarded by mutex_
  bool cancelled_ = false;              // guarded by mutex_
  std::function<void()> notify_;        // guarded by mutex_
};

}  // namespace polyreme::engine
