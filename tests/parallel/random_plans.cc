#include "tests/parallel/random_plans.h"

#include <algorithm>

#include "parallel/base/limits.h"

namespace polyreme::step {
namespace {

bool Flip(std::mt19937_64& random) {
  return Uniform(random, 0, 1) == 1;
}

std::vector<TokenId> RandomTokens(std::mt19937_64& random, int32_t count, int32_t vocabulary) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (TokenId& token : tokens) token = Uniform(random, 0, vocabulary - 1);
  return tokens;
}

}  // namespace

StepLimits SmallLimits() {
  return {.num_slots = 6,
          .num_blocks = 50,
          .tokens_per_block = 4,
          .max_step_tokens = 24,
          .max_step_samples = 12,
          .max_model_len = 30,
          .vocabulary = 97,
          .max_steps_in_flight = 3};
}

int32_t Uniform(std::mt19937_64& random, int32_t low, int32_t high) {
  return low + static_cast<int32_t>(random() % static_cast<uint64_t>(high - low + 1));
}

SamplingParams RandomSampling(std::mt19937_64& random, const StepLimits& limits) {
  SamplingParams p;
  p.temperature = static_cast<float>(Uniform(random, 0, 8)) / 4.0f;
  p.top_k = Uniform(random, 0, 10);
  p.top_p = static_cast<float>(Uniform(random, 1, 10)) / 10.0f;
  p.min_p = static_cast<float>(Uniform(random, 0, 10)) / 10.0f;
  p.repetition_penalty = static_cast<float>(Uniform(random, 1, 8)) / 4.0f;
  p.presence_penalty = static_cast<float>(Uniform(random, -8, 8)) / 4.0f;
  p.frequency_penalty = static_cast<float>(Uniform(random, -8, 8)) / 4.0f;
  for (int32_t i = Uniform(random, 0, 2); i > 0; --i) {
    p.logit_bias.emplace_back(Uniform(random, 0, limits.vocabulary - 1), 1.5f);
  }
  p.allowed_tokens = RandomTokens(random, Uniform(random, 0, 2), limits.vocabulary);
  p.stop_tokens = RandomTokens(random, Uniform(random, 0, 2), limits.vocabulary);
  p.seed = random();
  p.choice = Uniform(random, 0, 3);
  p.min_tokens = Uniform(random, 0, 5);
  p.num_logprobs = Uniform(random, -1, limits::kMaxLogprobs);
  return p;
}

StepResult RandomResult(std::mt19937_64& random, const StepPlan& plan, const StepLimits& limits) {
  StepResult result{plan.id, plan.epoch, {}, {}};
  for (const Sample& asked : plan.samples) {
    SampleResult& sample = result.samples.emplace_back();
    sample.finite = Uniform(random, 0, 9) > 0;
    sample.token = asked.kind == Sample::Kind::kDraw ? Uniform(random, 0, limits.vocabulary - 1)
                                                     : asked.target;
    sample.logprob = -static_cast<float>(Uniform(random, 0, 1000)) / 64.0f;
    sample.rank = Uniform(random, 1, limits.vocabulary);
    for (int32_t i = Uniform(random, 0, 3); i > 0; --i) {
      sample.top.push_back({Uniform(random, 0, limits.vocabulary - 1), -1.25f});
    }
  }
  result.timings.push_back({Rank{Uniform(random, 0, 7)},
                            absl::Nanoseconds(Uniform(random, 0, 1 << 30)),
                            absl::Nanoseconds(Uniform(random, 0, 1 << 30))});
  return result;
}

RandomPlans::RandomPlans(uint64_t seed, const StepLimits& limits)
    : limits_(limits), random_(seed), table_(limits) {}

BlockId RandomPlans::AnyBlock() {
  return BlockId{Uniform(random_, 0, limits_.num_blocks - 1)};
}

StepPlan RandomPlans::Next() {
  StepPlan plan;
  plan.id = StepId{table_.last_step().value + 1};
  plan.epoch = Epoch{1};
  CloseSome(plan);
  OpenSome(plan);
  if (Flip(random_)) plan.copies.push_back({BlockId{0}, BlockId{1}});
  if (Flip(random_)) plan.copies.push_back({BlockId{0}, BlockId{2}});
  for (int32_t i = 0; i < limits_.num_slots; ++i) {
    const auto closed = std::find(plan.closed.begin(), plan.closed.end(), SlotId{i});
    if (table_.IsOpen(SlotId{i}) && closed == plan.closed.end() && Uniform(random_, 0, 3) > 0) {
      AddRow(plan, SlotId{i});
    }
  }
  CHECK(Validate(plan, table_, limits_).ok(), "{}", Message(Validate(plan, table_, limits_)));
  table_.Apply(plan);
  return plan;
}

void RandomPlans::CloseSome(StepPlan& plan) {
  for (int32_t i = 0; i < limits_.num_slots; ++i) {
    const SlotId slot{i};
    const bool full = table_.IsOpen(slot) && table_.at(slot).num_positions >= limits_.max_model_len;
    if (table_.IsOpen(slot) && (full || Uniform(random_, 0, 9) == 0)) plan.closed.push_back(slot);
  }
}

// Opened slots get their first row in a later plan, so that the table says where it may start.
void RandomPlans::OpenSome(StepPlan& plan) {
  for (int32_t i = 0; i < limits_.num_slots; ++i) {
    const auto closed = std::find(plan.closed.begin(), plan.closed.end(), SlotId{i});
    const bool free = !table_.IsOpen(SlotId{i}) || closed != plan.closed.end();
    if (!free || Flip(random_)) continue;
    SlotOpen& opened = plan.opened.emplace_back();
    opened.slot = SlotId{i};
    opened.sequence = SequenceId{num_sequences_++};
    opened.tokens = RandomTokens(random_, Uniform(random_, 1, 20), limits_.vocabulary);
    opened.num_prompt_tokens = Uniform(random_, 1, static_cast<int32_t>(opened.tokens.size()));
    for (int32_t b = Uniform(random_, 0, 4); b > 0; --b) opened.blocks.push_back(AnyBlock());
    opened.sampling = RandomSampling(random_, limits_);
  }
}

void RandomPlans::AddRow(StepPlan& plan, SlotId id) {
  const SlotTable::Slot& slot = table_.at(id);
  const int32_t budget = limits_.max_step_tokens - static_cast<int32_t>(plan.tokens.size());
  const bool feed =
      slot.last_draw.has_value() &&
      plan.id.value - slot.last_draw->source.step.value < limits_.max_steps_in_flight &&
      slot.last_draw->position < limits_.max_model_len && Flip(random_);
  const int32_t first = feed ? slot.last_draw->position : slot.num_positions;
  const int32_t room = std::min(budget, limits_.max_model_len - first);
  if (room < 1) return;
  StepRow row{id, first, feed ? 1 : Uniform(random_, 1, room), std::nullopt};
  if (feed) row.first_token = slot.last_draw->source;
  const int32_t needed =
      (first + row.num_tokens + limits_.tokens_per_block - 1) / limits_.tokens_per_block;
  SlotAppend append{id, {}};
  for (int32_t b = static_cast<int32_t>(slot.blocks.size()); b < needed; ++b) {
    append.blocks.push_back(AnyBlock());
  }
  if (!append.blocks.empty()) plan.appended.push_back(append);
  for (int32_t i = 0; i < row.num_tokens; ++i) {
    const size_t position = static_cast<size_t>(first + i);
    const bool known = position < slot.tokens.size();
    plan.tokens.push_back(feed    ? 0
                          : known ? slot.tokens[position]
                                  : Uniform(random_, 0, limits_.vocabulary - 1));
  }
  plan.rows.push_back(row);
  const int32_t last = static_cast<int32_t>(plan.tokens.size()) - 1;
  if (std::ssize(plan.samples) + 2 > limits_.max_step_samples) return;
  if (Flip(random_)) {
    plan.samples.push_back({Sample::Kind::kScore, id,
                            last - Uniform(random_, 0, row.num_tokens - 1),
                            Uniform(random_, 0, limits_.vocabulary - 1)});
  }
  if (Flip(random_)) plan.samples.push_back({Sample::Kind::kDraw, id, last, 0});
  if (first + row.num_tokens == slot.num_prompt_tokens) AddForks(plan, id, last);
}

void RandomPlans::AddForks(StepPlan& plan, SlotId origin, int32_t token_index) {
  for (int32_t i = 0; i < limits_.num_slots; ++i) {
    const bool taken = table_.IsOpen(SlotId{i}) ||
                       std::any_of(plan.opened.begin(), plan.opened.end(),
                                   [&](const SlotOpen& o) { return o.slot.value == i; });
    if (taken || std::ssize(plan.samples) + 1 > limits_.max_step_samples) continue;
    SlotOpen& fork = plan.opened.emplace_back();
    fork.slot = SlotId{i};
    fork.fork_of = origin;
    fork.sequence = SequenceId{num_sequences_++};
    fork.num_prompt_tokens = table_.at(origin).num_prompt_tokens;
    fork.sampling = RandomSampling(random_, limits_);
    plan.samples.push_back({Sample::Kind::kDraw, fork.slot, token_index, 0});
  }
}

}  // namespace polyreme::step
