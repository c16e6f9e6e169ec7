// Committed tokens of one choice to text and stop decisions. Decided token by token, in order, so
// that the result never depends on timing: what ran on past a stop is dropped and counted nowhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "coordinator/sched/scheduler.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"
#include "parallel/step/step_plan.h"

namespace polyreme::engine {

// One thread.
class ChoiceOutput {
 public:
  // The tokenizer is borrowed. `stops` has the request's stop strings.
  ChoiceOutput(const GenerateRequest& request, int32_t choice, const text::Tokenizer& tokenizer,
               text::StopMatcher stops);

  // The score of the next prompt token; it goes out with the next piece.
  void AddPromptScore(const step::SampleResult& sample);
  // The piece of one output token, or of the end without one. `sample` is null with kEnd. A piece
  // whose `finish` is not kNone is the last; if a stop string ended it, the scheduler does not know
  // yet.
  OutputPiece Take(const sched::TokenEvent& event, const step::SampleResult* sample);

  int32_t num_tokens() const { return num_tokens_; }

 private:
  // Text of a token that goes on; says whether a stop string is complete.
  bool AddText(TokenId token, OutputPiece& piece);
  void End(sched::Finish finish, OutputPiece& piece);

  const int32_t choice_;
  const int32_t min_tokens_;
  const int32_t logprobs_;
  const int32_t prompt_logprobs_;
  const bool shows_stop_;
  int32_t num_tokens_ = 0;
  text::Detokenizer detokenizer_;
  text::StopMatcher stops_;
  std::string characters_;                 // scratch
  std::vector<TokenScore> prompt_scores_;  // not sent yet
};

}  // namespace polyreme::engine
