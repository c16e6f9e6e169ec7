#include "deploy/bench/step_driver.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::bench {

void StepDriver::Open(int32_t num_slots, int32_t capacity,
                      const std::function<std::vector<TokenId>(int32_t slot)>& tokens_of,
                      const step::SamplingParams& sampling) {
  for (int32_t s = 0; s < static_cast<int32_t>(tokens_.size()); ++s) to_close_.push_back(SlotId{s});
  tokens_.clear();
  const int32_t blocks = (capacity + limits_.tokens_per_block - 1) / limits_.tokens_per_block;
  CHECK(int64_t{num_slots} * blocks <= limits_.num_blocks && num_slots <= limits_.num_slots,
        "{} slots of {} blocks", num_slots, blocks);
  for (int32_t s = 0; s < num_slots; ++s) {
    tokens_.push_back(tokens_of(s));
    step::SlotOpen open;
    open.slot = SlotId{s};
    open.sequence = SequenceId{next_sequence_++};
    open.tokens = tokens_.back();
    open.num_prompt_tokens = static_cast<int32_t>(open.tokens.size());
    // Blocks of the sequences lie between each other, as they do after a while of serving.
    for (int32_t b = 0; b < blocks; ++b) open.blocks.push_back(BlockId{b * num_slots + s});
    open.sampling = sampling;
    to_open_.push_back(std::move(open));
  }
}

absl::Status StepDriver::Prefill(int32_t num_slots, int32_t tokens) {
  step::StepPlan plan = NewPlan();
  for (int32_t s = 0; s < num_slots; ++s) {
    for (int32_t first = 0; first < tokens;) {
      const int32_t room = limits_.max_step_tokens - static_cast<int32_t>(plan.tokens.size());
      const int32_t count = std::min(room, tokens - first);
      AddRow(plan, s, first, count);
      first += count;
      if (count == room) {
        RETURN_IF_ERROR(Submit(std::exchange(plan, {})));
        plan = NewPlan();
      }
    }
  }
  if (!plan.rows.empty()) {
    RETURN_IF_ERROR(Submit(std::move(plan)));
  } else {
    --next_step_;
  }
  return Drain();
}

absl::Status StepDriver::PrefillAndDraw(int32_t slot, int32_t tokens) {
  for (int32_t first = 0; first < tokens;) {
    step::StepPlan plan = NewPlan();
    const int32_t count = std::min(limits_.max_step_tokens, tokens - first);
    AddRow(plan, slot, first, count);
    first += count;
    if (first == tokens) {
      plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{slot}, count - 1, 0});
    }
    RETURN_IF_ERROR(Submit(std::move(plan)));
  }
  return Drain();
}

absl::StatusOr<std::vector<absl::Duration>> StepDriver::Decode(int32_t batch, int32_t context,
                                                               int32_t num_steps, int32_t cohorts) {
  RETURN_IF_ERROR(Drain());
  answered_.clear();
  std::vector<StepId> drawn_in(static_cast<size_t>(cohorts));
  for (int32_t i = 0; i < num_steps; ++i) {
    for (int32_t c = 0; c < cohorts; ++c) {
      step::StepPlan plan = NewPlan();
      for (int32_t s = c; s < batch; s += cohorts) {
        const auto index = static_cast<int32_t>(plan.rows.size());
        step::StepRow row{SlotId{s}, context + i, 1, std::nullopt};
        if (i > 0) row.first_token = {drawn_in[static_cast<size_t>(c)], index};
        plan.rows.push_back(row);
        plan.tokens.push_back(i > 0 ? 0 : (s * 7 + 1) % limits_.vocabulary);
        plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{s}, index, 0});
      }
      drawn_in[static_cast<size_t>(c)] = plan.id;
      RETURN_IF_ERROR(Submit(std::move(plan)));
    }
  }
  RETURN_IF_ERROR(Drain());
  std::vector<absl::Duration> durations;
  const auto stride = static_cast<size_t>(cohorts);
  for (size_t i = 2 * stride - 1; i < answered_.size(); i += stride) {
    durations.push_back(answered_[i] - answered_[i - stride]);
  }
  return durations;
}

absl::StatusOr<std::vector<step::SampleResult>> StepDriver::Score(
    absl::Span<const TokenId> tokens) {
  RETURN_IF_ERROR(Drain());
  samples_.clear();
  const auto total = static_cast<int32_t>(tokens.size());
  const int32_t chunk = std::min(limits_.max_step_tokens, limits_.max_step_samples);
  for (int32_t first = 0; first < total; first += chunk) {
    step::StepPlan plan = NewPlan();
    const int32_t count = std::min(chunk, total - first);
    AddRow(plan, 0, first, count);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t next = first + i + 1;
      if (next < total) {
        plan.samples.push_back(
            {step::Sample::Kind::kScore, SlotId{0}, i, tokens[static_cast<size_t>(next)]});
      } else {
        plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{0}, i, 0});
      }
    }
    RETURN_IF_ERROR(Submit(std::move(plan)));
  }
  RETURN_IF_ERROR(Drain());
  return std::exchange(samples_, {});
}

step::StepPlan StepDriver::NewPlan() {
  step::StepPlan plan;
  plan.id = StepId{next_step_++};
  plan.epoch = Epoch{1};
  return plan;
}

void StepDriver::AddRow(step::StepPlan& plan, int32_t slot, int32_t first, int32_t tokens) const {
  const std::vector<TokenId>& known = tokens_[static_cast<size_t>(slot)];
  plan.rows.push_back({SlotId{slot}, first, tokens, std::nullopt});
  plan.tokens.insert(plan.tokens.end(), known.begin() + first, known.begin() + first + tokens);
}

absl::Status StepDriver::Submit(step::StepPlan plan) {
  plan.closed = std::exchange(to_close_, {});
  plan.opened = std::exchange(to_open_, {});
  RETURN_IF_ERROR(ranks_.Submit(plan));
  ++in_flight_;
  while (in_flight_ >= limits_.max_steps_in_flight) RETURN_IF_ERROR(Await());
  return absl::OkStatus();
}

absl::Status StepDriver::Await() {
  ASSIGN_OR_RETURN(step::StepResult result, ranks_.Await());
  --in_flight_;
  answered_.push_back(MonotonicNow());
  for (const step::SampleResult& sample : result.samples) {
    if (!sample.finite) return DataLoss("step {}: logits that are no numbers", result.id.value);
  }
  samples_.insert(samples_.end(), result.samples.begin(), result.samples.end());
  return absl::OkStatus();
}

absl::Status StepDriver::Drain() {
  while (in_flight_ > 0) RETURN_IF_ERROR(Await());
  return absl::OkStatus();
}

}  // namespace polyreme::bench
