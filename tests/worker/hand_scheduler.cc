#include "tests/worker/hand_scheduler.h"

#include <algorithm>
#include <deque>
#include <optional>

namespace polyreme::run {
namespace {

using step::Sample;
using step::StepPlan;

// A token that is known, or where it will come from.
struct Token {
  std::optional<TokenId> known;
  step::TokenSource source;
};

struct Sequence {
  const HandRequest* request = nullptr;
  int32_t choice = 0;
  SlotId slot;
  size_t output = 0;  // index into the results
  size_t origin = 0;  // index of the sequence that runs the prompt; itself but for forks
  bool open = false;
  int32_t num_run = 0;  // positions given to rows so far
  std::vector<Token> drawn;
  std::vector<BlockId> blocks;

  int32_t num_prompt() const { return static_cast<int32_t>(request->prompt.size()); }
  int32_t length() const { return num_prompt() + request->num_outputs; }
  bool finished() const { return std::ssize(drawn) == request->num_outputs; }
};

// What a sample of a plan was asked for.
struct Asked {
  size_t sequence = 0;
  bool is_draw = false;
  size_t draw = 0;  // which of Sequence::drawn
};

class Driver {
 public:
  Driver(const HandRanks& ranks, const step::StepLimits& limits, const HandPolicy& policy)
      : ranks_(ranks),
        limits_(limits),
        policy_(policy),
        next_step_(ranks.first_step),
        random_(policy.block_seed) {
    free_blocks_.resize(static_cast<size_t>(limits.num_blocks));
    for (int32_t i = 0; i < limits.num_blocks; ++i)
      free_blocks_[static_cast<size_t>(i)] = BlockId{i};
    std::shuffle(free_blocks_.begin(), free_blocks_.end(), random_);
  }

  absl::Status Run(const std::vector<const HandRequest*>& requests,
                   std::vector<HandOutput>& results, size_t first_output);
  // Leaves no slot open: a plan that only closes.
  absl::Status Close();

 private:
  void AddSequences(const HandRequest& request, size_t first_output);
  StepPlan MakePlan();
  void OpenSequence(StepPlan& plan, Sequence& sequence);
  void AddRow(StepPlan& plan, size_t index);
  void AddPrompt(StepPlan& plan, size_t index);
  void AddDraw(StepPlan& plan, size_t index, int32_t token_index);
  absl::Status Collect(std::vector<HandOutput>& results);
  BlockId TakeBlock();

  const HandRanks& ranks_;
  const step::StepLimits& limits_;
  const HandPolicy policy_;
  int64_t next_step_;
  int32_t next_cohort_ = 0;
  std::mt19937_64 random_;
  std::vector<BlockId> free_blocks_;
  std::vector<Sequence> sequences_;
  std::vector<SlotId> to_close_;
  std::vector<Asked> asked_;  // of the plan being made
  std::deque<std::vector<Asked>> in_flight_;
};

BlockId Driver::TakeBlock() {
  CHECK(!free_blocks_.empty(), "the test asks for more blocks than there are");
  const BlockId block = free_blocks_.back();
  free_blocks_.pop_back();
  return block;
}

void Driver::AddSequences(const HandRequest& request, size_t first_output) {
  const size_t origin = sequences_.size();
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    Sequence& sequence = sequences_.emplace_back();
    sequence.request = &request;
    sequence.choice = choice;
    sequence.slot = SlotId{static_cast<int32_t>(sequences_.size()) - 1};
    sequence.output = first_output + static_cast<size_t>(choice);
    sequence.origin = origin;
  }
}

absl::Status Driver::Run(const std::vector<const HandRequest*>& requests,
                         std::vector<HandOutput>& results, size_t first_output) {
  sequences_.clear();
  for (const HandRequest* request : requests) {
    AddSequences(*request, first_output);
    first_output += static_cast<size_t>(request->num_choices);
  }
  const auto finished = [&] {
    return std::all_of(sequences_.begin(), sequences_.end(),
                       [](const Sequence& sequence) { return sequence.finished(); });
  };
  while (!finished() || !in_flight_.empty()) {
    while (!finished() && std::ssize(in_flight_) < policy_.depth) {
      const StepPlan plan = MakePlan();
      RETURN_IF_ERROR(ranks_.submit(plan));
      in_flight_.push_back(asked_);
    }
    RETURN_IF_ERROR(Collect(results));
  }
  for (Sequence& sequence : sequences_) {
    to_close_.push_back(sequence.slot);
    free_blocks_.insert(free_blocks_.begin(), sequence.blocks.begin(), sequence.blocks.end());
  }
  return absl::OkStatus();
}

absl::Status Driver::Close() {
  sequences_.clear();
  RETURN_IF_ERROR(ranks_.submit(MakePlan()));
  return ranks_.await().status();
}

StepPlan Driver::MakePlan() {
  asked_.clear();
  StepPlan plan;
  plan.id = StepId{next_step_++};
  plan.epoch = Epoch{1};
  plan.closed = std::move(to_close_);
  to_close_.clear();
  const int32_t cohort = next_cohort_++ % policy_.cohorts;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    // A request's choices stay together: forks draw from their origin's row.
    if (static_cast<int32_t>(sequences_[i].origin) % policy_.cohorts == cohort) AddRow(plan, i);
  }
  return plan;
}

void Driver::OpenSequence(StepPlan& plan, Sequence& sequence) {
  sequence.open = true;
  step::SlotOpen& opened = plan.opened.emplace_back();
  opened.slot = sequence.slot;
  opened.sequence = SequenceId{next_step_ * 1000 + sequence.slot.value};
  opened.num_prompt_tokens = sequence.num_prompt();
  opened.sampling = sequence.request->sampling;
  opened.sampling.choice = sequence.choice;
  const int32_t needed =
      (sequence.length() + limits_.tokens_per_block - 1) / limits_.tokens_per_block;
  int32_t shared = 0;
  if (sequence.choice > 0) {
    opened.fork_of = sequences_[sequence.origin].slot;
    shared = sequence.num_prompt() / limits_.tokens_per_block;
  } else {
    opened.tokens = sequence.request->prompt;
  }
  for (int32_t i = shared; i < needed; ++i) sequence.blocks.push_back(TakeBlock());
  opened.blocks = sequence.blocks;
}

void Driver::AddRow(StepPlan& plan, size_t index) {
  Sequence& sequence = sequences_[index];
  if (sequence.finished()) return;
  if (sequence.drawn.empty()) {
    if (sequence.choice == 0) AddPrompt(plan, index);
    return;
  }
  if (sequence.drawn.back().source.step == plan.id)
    return;  // a fork, drawn from its origin's row just now
  const int32_t position = sequence.num_prompt() + static_cast<int32_t>(sequence.drawn.size()) - 1;
  // The block that the prompt fills in part is the fork's first own one; the prompt's part is
  // copied into it.
  if (sequence.choice > 0 && sequence.num_run == 0 &&
      sequence.num_prompt() % limits_.tokens_per_block != 0) {
    const Sequence& origin = sequences_[sequence.origin];
    const auto partial = static_cast<size_t>(sequence.num_prompt() / limits_.tokens_per_block);
    plan.copies.push_back({origin.blocks[partial], sequence.blocks.front()});
  }
  const Token& token = sequence.drawn.back();
  step::StepRow row{sequence.slot, position, 1, std::nullopt};
  if (!token.known.has_value()) row.first_token = token.source;
  plan.rows.push_back(row);
  plan.tokens.push_back(token.known.value_or(0));
  sequence.num_run = position + 1;
  AddDraw(plan, index, static_cast<int32_t>(plan.tokens.size()) - 1);
}

void Driver::AddPrompt(StepPlan& plan, size_t index) {
  Sequence& sequence = sequences_[index];
  if (!sequence.open) OpenSequence(plan, sequence);
  const int32_t room = limits_.max_step_tokens - static_cast<int32_t>(plan.tokens.size());
  const int32_t count = std::min({policy_.chunk, room, sequence.num_prompt() - sequence.num_run});
  if (count <= 0) return;
  plan.rows.push_back({sequence.slot, sequence.num_run, count, std::nullopt});
  const std::vector<TokenId>& prompt = sequence.request->prompt;
  for (int32_t i = 0; i < count; ++i) {
    const auto position = static_cast<size_t>(sequence.num_run + i);
    plan.tokens.push_back(prompt[position]);
    if (sequence.request->scores_prompt && position + 1 < prompt.size()) {
      plan.samples.push_back({Sample::Kind::kScore, sequence.slot,
                              static_cast<int32_t>(plan.tokens.size()) - 1, prompt[position + 1]});
      asked_.push_back({index, false, 0});
    }
  }
  sequence.num_run += count;
  if (sequence.num_run < sequence.num_prompt()) return;
  const int32_t last = static_cast<int32_t>(plan.tokens.size()) - 1;
  AddDraw(plan, index, last);
  for (size_t fork = index + 1; fork < sequences_.size() && sequences_[fork].origin == index;
       ++fork) {
    OpenSequence(plan, sequences_[fork]);
    AddDraw(plan, fork, last);
  }
}

void Driver::AddDraw(StepPlan& plan, size_t index, int32_t token_index) {
  Sequence& sequence = sequences_[index];
  asked_.push_back({index, true, sequence.drawn.size()});
  sequence.drawn.push_back({std::nullopt, {plan.id, static_cast<int32_t>(plan.samples.size())}});
  plan.samples.push_back({Sample::Kind::kDraw, sequence.slot, token_index, 0});
}

absl::Status Driver::Collect(std::vector<HandOutput>& results) {
  ASSIGN_OR_RETURN(const step::StepResult result, ranks_.await());
  const std::vector<Asked> asked = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (asked.size() != result.samples.size()) {
    return Internal("expected {} samples, got {}", asked.size(), result.samples.size());
  }
  for (size_t i = 0; i < asked.size(); ++i) {
    Sequence& sequence = sequences_[asked[i].sequence];
    HandOutput& output = results[sequence.output];
    if (!asked[i].is_draw) {
      output.prompt_scores.push_back(result.samples[i]);
      continue;
    }
    sequence.drawn[asked[i].draw].known = result.samples[i].token;
    output.outputs.push_back(result.samples[i]);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<HandOutput>> RunByHand(RankThreads& ranks,
                                                  const step::StepLimits& limits,
                                                  const std::vector<HandRequest>& requests,
                                                  const HandPolicy& policy) {
  return RunByHand({.submit = [&](const StepPlan& plan) { return ranks.Submit(plan); },
                    .await = [&] { return ranks.Await(); },
                    .first_step = ranks.stats(0).steps},
                   limits, requests, policy);
}

absl::StatusOr<std::vector<HandOutput>> RunByHand(const HandRanks& ranks,
                                                  const step::StepLimits& limits,
                                                  const std::vector<HandRequest>& requests,
                                                  const HandPolicy& policy) {
  Driver driver(ranks, limits, policy);
  std::vector<HandOutput> results;
  std::vector<const HandRequest*> together;
  for (const HandRequest& request : requests) {
    const size_t first = results.size();
    results.resize(first + static_cast<size_t>(request.num_choices));
    together.push_back(&request);
    if (policy.alone) {
      RETURN_IF_ERROR(driver.Run({&request}, results, first));
    }
  }
  if (!policy.alone) RETURN_IF_ERROR(driver.Run(together, results, 0));
  RETURN_IF_ERROR(driver.Close());
  return results;
}

}  // namespace polyreme::run
