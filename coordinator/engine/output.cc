#include "coordinator/engine/output.h"

#include <algorithm>
#include <utility>

namespace polyreme::engine {
namespace {

// The workers were asked for as many candidates as draws and prompt scores need together; each gets
// its own number.
TokenScore ToScore(const step::SampleResult& sample, int32_t num_top) {
  TokenScore score{sample.token, sample.logprob, sample.rank, {}};
  const auto count = std::min<int64_t>(std::ssize(sample.top), num_top);
  score.top.assign(sample.top.begin(), sample.top.begin() + count);
  return score;
}

}  // namespace

ChoiceOutput::ChoiceOutput(const GenerateRequest& request, int32_t choice,
                           const text::Tokenizer& tokenizer, text::StopMatcher stops)
    : choice_(choice),
      min_tokens_(request.min_tokens),
      logprobs_(request.logprobs),
      prompt_logprobs_(request.prompt_logprobs),
      shows_stop_(request.include_stop_str_in_output),
      detokenizer_(tokenizer, request.skip_special_tokens ? text::SpecialTokensInOutput::kSkipped
                                                          : text::SpecialTokensInOutput::kKept),
      stops_(std::move(stops)) {}

void ChoiceOutput::AddPromptScore(const step::SampleResult& sample) {
  prompt_scores_.push_back(ToScore(sample, prompt_logprobs_));
}

OutputPiece ChoiceOutput::Take(const sched::TokenEvent& event, const step::SampleResult* sample) {
  OutputPiece piece;
  piece.choice = choice_;
  piece.prompt_scores = std::move(prompt_scores_);
  prompt_scores_.clear();
  if (event.kind != sched::TokenEvent::Kind::kToken) {
    End(event.finish, piece);
    return piece;
  }
  ++num_tokens_;
  piece.tokens.push_back(event.token);
  if (logprobs_ >= 0) piece.scores.push_back(ToScore(*sample, logprobs_));

  using sched::Finish;
  const bool ended_by_token =
      event.finish == Finish::kEndOfSequence || event.finish == Finish::kStopToken;
  if (event.finish == Finish::kStopToken) piece.stop_token = event.token;
  if (!ended_by_token || shows_stop_) {
    if (AddText(event.token, piece)) return piece;
  }
  if (event.finish != Finish::kNone) End(event.finish, piece);
  return piece;
}

bool ChoiceOutput::AddText(TokenId token, OutputPiece& piece) {
  characters_.clear();
  detokenizer_.Push(token, characters_);
  if (num_tokens_ <= min_tokens_) {
    stops_.PushUnmatched(characters_, piece.text);
    return false;
  }
  const std::optional<text::StopMatch> match = stops_.Push(characters_, piece.text);
  if (!match.has_value()) return false;
  piece.stop_string = stops_.stops()[static_cast<size_t>(match->stop_index)];
  if (shows_stop_) piece.text += *piece.stop_string;
  piece.finish = FinishReason::kStop;
  return true;
}

void ChoiceOutput::End(sched::Finish finish, OutputPiece& piece) {
  characters_.clear();
  detokenizer_.Flush(characters_);
  stops_.PushUnmatched(characters_, piece.text);
  stops_.Flush(piece.text);
  switch (finish) {
    case sched::Finish::kEndOfSequence:
    case sched::Finish::kStopToken:
      piece.finish = FinishReason::kStop;
      return;
    case sched::Finish::kLength:
      piece.finish = FinishReason::kLength;
      return;
    case sched::Finish::kNotFinite:
      piece.finish = FinishReason::kAbort;
      piece.error =
          Internal("choice {}: the model's logits are NaN or infinite after {} output tokens",
                   choice_, num_tokens_);
      return;
    case sched::Finish::kNone:
      break;
  }
  CHECK(false, "choice {} has not ended", choice_);
}

}  // namespace polyreme::engine
