#include "tests/coordinator/fake_worker.h"

#include <algorithm>

namespace polyreme::sched {
namespace {

uint64_t HashOf(const std::vector<TokenId>& tokens) {
  uint64_t h = 0x9e3779b97f4a7c15u;
  for (const TokenId token : tokens) {
    h ^= static_cast<uint64_t>(token) + 1;
    h *= 0xff51afd7ed558ccdu;
    h ^= h >> 33;
  }
  return h;
}

}  // namespace

TokenId NextToken(const std::vector<TokenId>& tokens, int32_t vocabulary) {
  return static_cast<TokenId>(HashOf(tokens) % static_cast<uint64_t>(vocabulary));
}

float ScoreOf(const std::vector<TokenId>& tokens, TokenId target) {
  const uint64_t h = HashOf(tokens) + static_cast<uint64_t>(target) * 0x9e3779b97f4a7c15u;
  return -static_cast<float>(h % 1000) / 64.0f;
}

FakeWorker::FakeWorker(const step::StepLimits& limits) : limits_(limits), slots_(limits) {
  cache_.assign(static_cast<size_t>(limits.num_blocks * limits.tokens_per_block), -1);
}

size_t FakeWorker::Place(SlotId slot, int32_t position) const {
  const BlockId block =
      slots_.at(slot).blocks[static_cast<size_t>(position / limits_.tokens_per_block)];
  return static_cast<size_t>(block.value * limits_.tokens_per_block +
                             position % limits_.tokens_per_block);
}

absl::Status FakeWorker::WriteRow(const step::StepPlan& plan, const step::StepRow& row,
                                  int32_t first_index) {
  for (int32_t i = 0; i < row.num_tokens; ++i) {
    TokenId token = plan.tokens[static_cast<size_t>(first_index + i)];
    if (row.first_token.has_value()) {
      const auto found = drawn_.find(row.first_token->step.value);
      if (found == drawn_.end())
        return Internal("step {} fed back nothing", row.first_token->step.value);
      token = found->second[static_cast<size_t>(row.first_token->sample)];
    }
    cache_[Place(row.slot, row.first_position + i)] = token;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> FakeWorker::ReadBack(SlotId slot, int32_t end) const {
  std::vector<TokenId> tokens;
  for (int32_t p = 0; p < end; ++p) {
    tokens.push_back(cache_[Place(slot, p)]);
    if (tokens.back() < 0) return Internal("slot {}: position {} was never written", slot.value, p);
  }
  return tokens;
}

absl::StatusOr<step::StepResult> FakeWorker::Run(const step::StepPlan& plan) {
  RETURN_IF_ERROR(step::Validate(plan, slots_, limits_));
  slots_.Apply(plan);
  const size_t block_size = static_cast<size_t>(limits_.tokens_per_block);
  for (const step::BlockCopy& copy : plan.copies) {
    std::copy_n(cache_.begin() + static_cast<int64_t>(copy.from.value * block_size), block_size,
                cache_.begin() + static_cast<int64_t>(copy.to.value * block_size));
  }
  std::vector<int32_t> row_of_token;
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    RETURN_IF_ERROR(WriteRow(plan, plan.rows[r], static_cast<int32_t>(row_of_token.size())));
    row_of_token.insert(row_of_token.end(), static_cast<size_t>(plan.rows[r].num_tokens),
                        static_cast<int32_t>(r));
  }
  step::StepResult result{plan.id, plan.epoch, {}, {}};
  std::vector<TokenId>& drawn = drawn_[plan.id.value];
  for (const step::Sample& sample : plan.samples) {
    const int32_t r = row_of_token[static_cast<size_t>(sample.token_index)];
    const step::StepRow& row = plan.rows[static_cast<size_t>(r)];
    const auto first = std::find(row_of_token.begin(), row_of_token.end(), r);
    const auto offset = sample.token_index - static_cast<int32_t>(first - row_of_token.begin());
    ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                     ReadBack(row.slot, row.first_position + offset + 1));
    step::SampleResult& answer = result.samples.emplace_back();
    const bool is_draw = sample.kind == step::Sample::Kind::kDraw;
    answer.token = is_draw ? NextToken(tokens, limits_.vocabulary) : sample.target;
    answer.logprob = ScoreOf(tokens, answer.token);
    const auto prompt_end =
        tokens.begin() +
        std::min<int64_t>(std::ssize(tokens), slots_.at(row.slot).num_prompt_tokens);
    answer.finite = std::find(tokens.begin(), prompt_end, kPoison) == prompt_end;
    if (!answer.finite) answer.token = 0;
    drawn.push_back(answer.token);
  }
  return result;
}

}  // namespace polyreme::sched
