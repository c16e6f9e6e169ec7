#include "tests/sim/sim_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace polyreme::sim {
namespace {

using engine::FinishReason;
using engine::TokenScore;

bool Contains(const std::vector<TokenId>& tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

bool Same(const TokenScore& a, const TokenScore& b) {
  return a.token == b.token && a.logprob == b.logprob && a.rank == b.rank && a.top == b.top;
}

template <class Items, class Equal>
bool IsPrefix(const Items& part, const Items& whole, Equal equal) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin(), equal);
}

// Why a token ends the sequence, if it does.
sched::Finish FinishAfter(TokenId token, int32_t num_output, const engine::GenerateRequest& request,
                          const engine::ModelLimits& model) {
  if (num_output >= request.min_tokens) {
    if (!request.ignore_eos && Contains(model.eos_tokens, token)) {
      return sched::Finish::kEndOfSequence;
    }
    if (Contains(request.stop_token_ids, token)) return sched::Finish::kStopToken;
  }
  return num_output == request.max_tokens ? sched::Finish::kLength : sched::Finish::kNone;
}

}  // namespace

void ChoiceText::Add(const engine::OutputPiece& piece) {
  tokens.insert(tokens.end(), piece.tokens.begin(), piece.tokens.end());
  text += piece.text;
  scores.insert(scores.end(), piece.scores.begin(), piece.scores.end());
  prompt_scores.insert(prompt_scores.end(), piece.prompt_scores.begin(), piece.prompt_scores.end());
  if (piece.finish == FinishReason::kNone) return;
  finish = piece.finish;
  stop_string = piece.stop_string;
  stop_token = piece.stop_token;
}

bool operator==(const ChoiceText& a, const ChoiceText& b) {
  const auto same = [](const std::vector<TokenScore>& x, const std::vector<TokenScore>& y) {
    return x.size() == y.size() && IsPrefix(x, y, Same);
  };
  return a.tokens == b.tokens && a.text == b.text && a.finish == b.finish &&
         a.stop_string == b.stop_string && a.stop_token == b.stop_token &&
         same(a.scores, b.scores) && same(a.prompt_scores, b.prompt_scores);
}

ChoiceText Expect(const engine::GenerateRequest& request, const engine::ModelLimits& model,
                  const Layout& layout, const text::Tokenizer& tokenizer, uint64_t seed,
                  int32_t choice) {
  const step::SamplingParams sampling = ToSamplingParams(request, model, seed, choice);
  engine::ChoiceOutput output(request, choice, tokenizer, *text::StopMatcher::Make(request.stop));
  ChoiceText expected;
  DirectModel direct(layout);
  const auto num_prompt = static_cast<int32_t>(request.prompt.size());
  const bool scores = choice == 0 && request.prompt_logprobs >= 0;
  const auto poison = static_cast<int32_t>(
      std::find(request.prompt.begin(), request.prompt.end(), kPoison) - request.prompt.begin());
  const auto end = [&](sched::Finish why) {
    expected.Add(output.Take({SequenceId{}, sched::TokenEvent::Kind::kEnd, 0, -1, why}, nullptr));
    return expected;
  };
  uint64_t hidden = 0;
  for (int32_t i = 0; i < num_prompt; ++i) {
    hidden = direct.Push(request.prompt[static_cast<size_t>(i)]);
    if (!scores || i + 1 == num_prompt) continue;
    if (i >= poison) return end(sched::Finish::kNotFinite);
    output.AddPromptScore(Score(hidden, sampling, request.prompt[static_cast<size_t>(i + 1)]));
  }
  if (request.max_tokens == 0) return end(sched::Finish::kLength);
  if (poison < num_prompt) return end(sched::Finish::kNotFinite);
  OutputCounts counts;
  for (int32_t num_output = 1; expected.finish == FinishReason::kNone; ++num_output) {
    const int32_t position = num_prompt + num_output - 1;
    const step::SampleResult sample = Draw(hidden, sampling, position, num_prompt, counts);
    ++counts[sample.token];
    const sched::Finish finish = FinishAfter(sample.token, num_output, request, model);
    expected.Add(output.Take(
        {SequenceId{}, sched::TokenEvent::Kind::kToken, sample.token, 0, finish}, &sample));
    hidden = direct.Push(sample.token);
  }
  return expected;
}

void Client::Submitted(std::shared_ptr<engine::TokenStream> stream, int32_t capacity) {
  stream_ = std::move(stream);
  capacity_ = capacity;
}

void Client::Accepted(SequenceId first, std::vector<ChoiceText> expected) {
  first_ = first;
  expected_ = std::move(expected);
  got_.resize(expected_.size());
}

void Client::Break() {
  stream_.reset();
  expected_.clear();
  got_.clear();
  num_losses = 0;
}

void Client::Cancel(absl::Time now) {
  if (ended_ || cancelled()) return;
  cancelled_at_ = now;
  stream_->Cancel();
}

bool Client::MustHaveEnded(absl::Time round_began) const {
  return accepted() && (cancelled_at_ < round_began || request_.deadline <= round_began);
}

void Client::Read(const Loop& loop, Report& report) {
  int32_t num_drained = 0;
  while (!ended_ && submitted()) {
    engine::TokenStream::Polled polled = stream_->Poll();
    if (!polled.ready) break;
    if (polled.piece.ok() && polled.piece->has_value()) {
      ++num_drained;
      Take(**polled.piece, report);
      continue;
    }
    ended_ = true;
    status_ = polled.piece.status();
    report.Trace("client {} ends: {}", number_, status_.ok() ? "ok" : Message(status_));
    CheckEnd(loop, num_drained, report);
  }
  if (num_drained > capacity_) {
    report.Fail("client {}: {} pieces lay in a stream of {}", number_, num_drained, capacity_);
  }
}

void Client::Take(const engine::OutputPiece& piece, Report& report) {
  if (!accepted() || piece.choice < 0 || piece.choice >= request_.n) {
    return report.Fail("client {}: a piece of choice {} it did not ask for", number_, piece.choice);
  }
  ChoiceText& got = got_[static_cast<size_t>(piece.choice)];
  const ChoiceText& want = expected_[static_cast<size_t>(piece.choice)];
  if (got.finish != FinishReason::kNone) {
    return report.Fail("client {}: choice {} goes on after its end", number_, piece.choice);
  }
  got.Add(piece);
  report.Trace("client {} choice {} gets {} tokens: {}", number_, piece.choice, piece.tokens.size(),
               fmt::join(piece.tokens, " "));
  if (!IsPrefix(got.tokens, want.tokens, std::equal_to<TokenId>())) {
    report.Fail("client {}: choice {}: expected tokens {}, got {}", number_, piece.choice,
                fmt::join(want.tokens, " "), fmt::join(got.tokens, " "));
  }
  if (want.text.compare(0, got.text.size(), got.text) != 0 ||
      !IsPrefix(got.scores, want.scores, Same) ||
      !IsPrefix(got.prompt_scores, want.prompt_scores, Same)) {
    report.Fail("client {}: choice {}: another text or other scores", number_, piece.choice);
  }
  if (piece.num_cached_tokens < 0 || piece.num_cached_tokens >= std::ssize(request_.prompt)) {
    report.Fail("client {}: {} cached tokens of {}", number_, piece.num_cached_tokens,
                request_.prompt.size());
  }
  if (got.finish == FinishReason::kNone) return;
  if (got != want) {
    report.Fail("client {}: choice {} ended otherwise than it should: {} of {} tokens, finish {}",
                number_, piece.choice, got.tokens.size(), want.tokens.size(),
                static_cast<int>(got.finish));
  }
}

// Each end has to have its reason.
void Client::CheckEnd(const Loop& loop, int32_t num_drained, Report& report) {
  switch (status_.code()) {
    case absl::StatusCode::kOk:
      for (const ChoiceText& got : got_) {
        if (got.finish == FinishReason::kNone) {
          report.Fail("client {}: its stream ended, but a choice did not", number_);
        }
      }
      return;
    case absl::StatusCode::kCancelled:
      if (!cancelled()) report.Fail("client {} was cancelled, but not by itself", number_);
      return;
    case absl::StatusCode::kDeadlineExceeded:
      if (loop.Now() < request_.deadline) report.Fail("client {}: too early", number_);
      return;
    case absl::StatusCode::kResourceExhausted:
      // There was room when it came, and none when it was taken: what a recovery set back waits
      // too.
      if (num_drained == 0 &&
          Message(status_).find("are waiting, as many as") != std::string::npos) {
        return;
      }
      if (accepted() && num_drained < capacity_) {
        report.Fail("client {} was too slow with {} of {} pieces unread", number_, num_drained,
                    capacity_);
      }
      return;
    case absl::StatusCode::kAborted:
      if (num_losses < 2) {
        report.Fail("client {}: quarantined after {} losses", number_, num_losses);
      }
      return;
    case absl::StatusCode::kUnavailable:
      return;  // the story knows whether the cluster failed
    default:
      report.Fail("client {}: {}", number_, Message(status_));
  }
}

}  // namespace polyreme::sim
