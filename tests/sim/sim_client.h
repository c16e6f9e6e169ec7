// One client: a request, what it has to get, and what it has got so far.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/output.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "coordinator/text/tokenizer.h"
#include "tests/sim/sim_loop.h"
#include "tests/sim/sim_model.h"

namespace polyreme::sim {

// All that one choice gives, however it is cut into pieces.
struct ChoiceText {
  std::vector<TokenId> tokens = {};
  std::string text = {};
  std::vector<engine::TokenScore> scores = {};
  std::vector<engine::TokenScore> prompt_scores = {};
  engine::FinishReason finish = engine::FinishReason::kNone;
  std::optional<std::string> stop_string = {};
  std::optional<TokenId> stop_token = {};

  void Add(const engine::OutputPiece& piece);
  friend bool operator==(const ChoiceText& a, const ChoiceText& b);
};

// What choice number `choice` of `request` has to give: the direct model, drawn token by token.
ChoiceText Expect(const engine::GenerateRequest& request, const engine::ModelLimits& model,
                  const Layout& layout, const text::Tokenizer& tokenizer, uint64_t seed,
                  int32_t choice);

// How fast it reads.
enum class Reader : uint8_t { kFast, kSlow, kNever };

class Client {
 public:
  Client(int32_t number, engine::GenerateRequest request, Reader reader)
      : number_(number), request_(std::move(request)), reader_(reader) {}

  int32_t number() const { return number_; }
  const engine::GenerateRequest& request() const { return request_; }
  Reader reader() const { return reader_; }
  // It has been queued.
  void Submitted(std::shared_ptr<engine::TokenStream> stream, int32_t capacity);
  // The engine has taken it; its sequences count from `first` on.
  void Accepted(SequenceId first, std::vector<ChoiceText> expected);
  // It was never queued, or not any more.
  void Refused() { ended_ = true; }
  // Its connection broke: nothing that it has got counts. It may be submitted again.
  void Break();
  void Cancel(absl::Time now);

  // Takes what is there; anything that it must not get fails the report.
  void Read(const Loop& loop, Report& report);
  // After a round of the engine that began then, while it was cancelled or out of time.
  bool MustHaveEnded(absl::Time round_began) const;

  bool submitted() const { return stream_ != nullptr; }
  bool accepted() const { return !expected_.empty(); }
  bool ended() const { return ended_; }
  bool cancelled() const { return cancelled_at_ < absl::InfiniteFuture(); }
  const absl::Status& status() const { return status_; }
  const std::vector<ChoiceText>& got() const { return got_; }
  const std::shared_ptr<engine::TokenStream>& stream() const { return stream_; }
  bool Owns(SequenceId sequence) const {
    return accepted() && sequence >= first_ && sequence.value < first_.value + request_.n;
  }

  int32_t num_losses = 0;  // in which it was in flight
  int32_t tries_left = 3;

 private:
  void Take(const engine::OutputPiece& piece, Report& report);
  void CheckEnd(const Loop& loop, int32_t num_drained, Report& report);

  const int32_t number_;
  const engine::GenerateRequest request_;
  const Reader reader_;
  std::shared_ptr<engine::TokenStream> stream_;
  int32_t capacity_ = 0;
  absl::Time cancelled_at_ = absl::InfiniteFuture();
  SequenceId first_;
  std::vector<ChoiceText> expected_;  // by choice
  std::vector<ChoiceText> got_;       // by choice
  bool ended_ = false;
  absl::Status status_;
};

}  // namespace polyreme::sim
