#include "tests/coordinator/scheduler_harness.h"

#include <fmt/format.h>

#include <utility>

namespace polyreme::step {
namespace {

std::string Ids(const std::vector<BlockId>& blocks) {
  std::string text;
  for (const BlockId block : blocks) text += fmt::format(" {}", block.value);
  return text;
}

}  // namespace

void PrintTo(const StepPlan& plan, std::ostream* out) {
  std::string text = fmt::format("step {} epoch {}\n", plan.id.value, plan.epoch.value);
  for (const SlotId slot : plan.closed) text += fmt::format("  close {}\n", slot.value);
  for (const SlotOpen& o : plan.opened) {
    text += fmt::format("  open {} for {}: {} tokens, {} prompt, blocks{}\n", o.slot.value,
                        o.sequence.value, o.tokens.size(), o.num_prompt_tokens, Ids(o.blocks));
  }
  for (const SlotAppend& a : plan.appended) {
    text += fmt::format("  append to {}:{}\n", a.slot.value, Ids(a.blocks));
  }
  for (const BlockCopy& c : plan.copies)
    text += fmt::format("  copy {} to {}\n", c.from.value, c.to.value);
  for (const StepRow& r : plan.rows) {
    text +=
        fmt::format("  row of {} at {}, {} tokens", r.slot.value, r.first_position, r.num_tokens);
    if (r.first_token.has_value()) {
      text += fmt::format(", fed by step {} sample {}", r.first_token->step.value,
                          r.first_token->sample);
    }
    text += "\n";
  }
  text += fmt::format("  tokens {}\n", fmt::join(plan.tokens, " "));
  for (const Sample& s : plan.samples) {
    text += fmt::format("  sample kind {} slot {} token {} target {}\n", static_cast<int>(s.kind),
                        s.slot.value, s.token_index, s.target);
  }
  *out << text;
}

}  // namespace polyreme::step

namespace polyreme::sched {

void PrintTo(const TokenEvent& event, std::ostream* out) {
  *out << fmt::format("sequence {} kind {} token {} sample {} finish {}", event.sequence.value,
                      static_cast<int>(event.kind), event.token, event.sample,
                      static_cast<int>(event.finish));
}

SchedulerLimits SmallLimits() {
  SchedulerLimits limits;
  limits.step = {.num_slots = 4,
                 .num_blocks = 8,
                 .tokens_per_block = 4,
                 .max_step_tokens = 64,
                 .max_step_samples = 16,
                 .max_model_len = 32,
                 .vocabulary = 1000,
                 .max_steps_in_flight = 5};
  limits.stages = 1;
  limits.max_num_seqs = 4;
  limits.max_num_batched_tokens = 16;
  limits.max_waiting = 8;
  limits.enable_prefix_caching = false;
  return limits;
}

SchedulerHarness::SchedulerHarness(const SchedulerLimits& given)
    : limits(given),
      blocks(given.step.num_blocks, given.step.tokens_per_block),
      scheduler(given, blocks),
      worker(std::make_unique<FakeWorker>(given.step)) {}

SequenceOptions SchedulerHarness::Options(int64_t id, int32_t length, int32_t max_tokens) const {
  SequenceOptions options;
  options.id = SequenceId{id};
  options.prompt = Prompt(id, 0, length);
  options.stop.max_tokens = max_tokens;
  options.stop.max_model_len = limits.step.max_model_len;
  return options;
}

absl::Status SchedulerHarness::Add(int64_t id, int32_t length, int32_t max_tokens) {
  return Add(Options(id, length, max_tokens));
}

absl::Status SchedulerHarness::Add(SequenceOptions options) {
  return scheduler.Admit(std::make_unique<Sequence>(std::move(options)));
}

step::StepPlan SchedulerHarness::Plan() {
  const step::StepPlan* plan = scheduler.Plan();
  CHECK(plan != nullptr, "nothing is runnable");
  absl::StatusOr<step::StepResult> result = worker->Run(*plan);
  CHECK(result.ok(), "{}", Message(result.status()));
  answers.push_back(*std::move(result));
  return *plan;
}

std::vector<TokenEvent> SchedulerHarness::Commit() {
  const auto events = scheduler.Commit(answers.front());
  CHECK(events.ok(), "{}", Message(events.status()));
  answers.pop_front();
  return {events->begin(), events->end()};
}

void SchedulerHarness::Rewind(Epoch epoch) {
  answers.clear();
  worker = std::make_unique<FakeWorker>(limits.step);
  scheduler.Rewind(epoch);
}

TokenId SchedulerHarness::Drawn(int64_t id, int32_t length, int32_t index) const {
  std::vector<TokenId> tokens = Prompt(id, 0, length);
  for (int32_t i = 0; i <= index; ++i) {
    tokens.push_back(NextToken(tokens, limits.step.vocabulary));
  }
  return tokens.back();
}

std::vector<TokenId> Prompt(int64_t id, int32_t begin, int32_t end) {
  std::vector<TokenId> tokens;
  for (int32_t i = begin; i < end; ++i) tokens.push_back(static_cast<TokenId>(100 * id + i));
  return tokens;
}

std::vector<BlockId> Blocks(std::initializer_list<int32_t> ids) {
  std::vector<BlockId> blocks;
  for (const int32_t id : ids) blocks.push_back(BlockId{id});
  return blocks;
}

step::SlotOpen Opened(int32_t slot, int64_t id, int32_t length, std::vector<BlockId> blocks) {
  step::SlotOpen opened;
  opened.slot = SlotId{slot};
  opened.sequence = SequenceId{id};
  opened.tokens = Prompt(id, 0, length);
  opened.num_prompt_tokens = length;
  opened.blocks = std::move(blocks);
  return opened;
}

step::SlotAppend Appended(int32_t slot, int32_t block) {
  return {SlotId{slot}, {BlockId{block}}};
}

step::StepRow Row(int32_t slot, int32_t first_position, int32_t num_tokens) {
  return {SlotId{slot}, first_position, num_tokens, std::nullopt};
}

step::StepRow FedBack(int32_t slot, int32_t position, int64_t step, int32_t sample) {
  return {SlotId{slot}, position, 1, step::TokenSource{StepId{step}, sample}};
}

step::Sample Draws(int32_t slot, int32_t token_index) {
  return {step::Sample::Kind::kDraw, SlotId{slot}, token_index, 0};
}

step::Sample Scores(int32_t slot, int32_t token_index, TokenId target) {
  return {step::Sample::Kind::kScore, SlotId{slot}, token_index, target};
}

TokenEvent Token(int64_t id, TokenId token, int32_t sample, Finish finish) {
  return {SequenceId{id}, TokenEvent::Kind::kToken, token, sample, finish};
}

}  // namespace polyreme::sched
