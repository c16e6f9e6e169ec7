#include "coordinator/sched/scheduler.h"

#include <algorithm>
#include <utility>

namespace polyreme::sched {
namespace {

// One in so many blocks is left over by admission, for what the horizon did not foresee.
constexpr int32_t kBlocksPerSpareBlock = 100;

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, BlockAllocator& blocks)
    : limits_(limits),
      blocks_(blocks),
      keys_(limits.cache_secret.has_value() ? *limits.cache_secret : KeyMaker::DrawSecret(),
            limits.step.tokens_per_block),
      horizon_(limits.step.tokens_per_block,
               std::max(limits.step.tokens_per_block, limits.step.max_model_len)),
      cohorts_(limits.stages) {
  CHECK(limits.max_num_seqs > 0 && limits.max_num_batched_tokens > 0 && limits.max_waiting > 0 &&
        limits.step.num_slots > 0 && limits.step.max_step_samples > 0);
  CHECK(limits.max_num_batched_tokens <= limits.step.max_step_tokens, "{} tokens of a step of {}",
        limits.max_num_batched_tokens, limits.step.max_step_tokens);
  CHECK(limits.stages + 1 <= limits.step.max_steps_in_flight, "{} stages, {} steps in flight",
        limits.stages, limits.step.max_steps_in_flight);
  CHECK(blocks.num_blocks() == limits.step.num_blocks &&
        blocks.tokens_per_block() == limits.step.tokens_per_block);
  for (int32_t i = limits.step.num_slots - 1; i >= 0; --i) free_slots_.push_back(SlotId{i});
  records_.resize(static_cast<size_t>(limits.stages + 1));
  reusable_.reserve(static_cast<size_t>(limits.step.num_blocks));
  // It would not survive a failed growth: room for all there can be, and as much for the places of
  // what was erased.
  sequences_.reserve(2 * static_cast<size_t>(limits.max_waiting + limits.max_num_seqs));
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::CheckFits(const SchedulerLimits& limits, int32_t num_prompt_tokens,
                                  int32_t max_tokens) {
  if (num_prompt_tokens < 1 || num_prompt_tokens > limits.step.max_model_len) {
    return InvalidArgument("prompt: expected 1 to {} tokens, got {}", limits.step.max_model_len,
                           num_prompt_tokens);
  }
  const int64_t capacity = int64_t{limits.step.num_blocks} * limits.step.tokens_per_block;
  const int64_t positions = int64_t{num_prompt_tokens} + std::max(0, max_tokens - 1);
  const int64_t needed = std::min<int64_t>(positions, limits.step.max_model_len);
  if (needed > capacity) {
    return InvalidArgument(
        "prompt and max_tokens: expected at most {} tokens, which is all the "
        "cache there is, got {} + {}",
        capacity, num_prompt_tokens, max_tokens);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Admit(std::unique_ptr<Sequence> sequence) {
  RETURN_IF_ERROR(CheckFits(limits_, sequence->num_prompt_tokens(), sequence->max_output_tokens()));
  if (num_waiting() >= limits_.max_waiting) {
    return ResourceExhausted("{} sequences are waiting, as many as may", limits_.max_waiting);
  }
  sequence->set_arrival(next_arrival_++);
  Sequence* borrowed = sequence.get();
  const bool is_new = sequences_.try_emplace(borrowed->id(), std::move(sequence)).second;
  CHECK(is_new, "sequence {} is known", borrowed->id().value);
  waiting_.insert(borrowed);
  return absl::OkStatus();
}

void Scheduler::Cancel(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || found->second->state() == Sequence::State::kFinished) return;
  End(*found->second);
}

StepRecord& Scheduler::RecordAt(int32_t age) {
  return records_[static_cast<size_t>(oldest_ + age) % records_.size()];
}

const step::StepPlan* Scheduler::Plan() {
  if (num_in_flight_ == static_cast<int32_t>(records_.size())) return nullptr;
  for (int32_t i = 0; i < limits_.stages; ++i) {
    const int32_t cohort = (next_cohort_ + i) % limits_.stages;
    builder_.Start(next_step_, epoch_,
                   {limits_.max_num_batched_tokens, limits_.step.max_step_samples},
                   &RecordAt(num_in_flight_));
    PlanCohort(cohort);
    if (builder_.empty()) continue;
    next_cohort_ = (cohort + 1) % limits_.stages;
    // Each cohort grows once in as many steps as there are cohorts.
    if (next_step_.value % limits_.stages == 0) horizon_.NoteStep();
    ++next_step_.value;
    ++num_in_flight_;
    return &builder_.Finish(closed_);
  }
  return nullptr;
}

void Scheduler::PlanCohort(int32_t cohort) {
  const int64_t preemptions_before = num_preemptions_;
  PlanRunning(cohort);
  if (num_preemptions_ == preemptions_before) {
    PlanWaiting(cohort);
  } else {
    // Blocks were just taken from somebody who runs: this is no time to let others in.
    horizon_.NotePreemption();
  }
  // Whoever could be let in has been; what is still uneven came from sequences that ended.
  cohorts_.Balance(cohort);
}

void Scheduler::PlanRunning(int32_t cohort) {
  // By index: planning a row may preempt sequences that stand after it.
  const std::vector<Sequence*>& members = cohorts_.at(cohort);
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i]->num_to_plan() == 1) TryAddRow(*members[i]);
  }
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i]->num_to_plan() > 1) TryAddRow(*members[i]);
  }
}

void Scheduler::PlanWaiting(int32_t cohort) {
  const int32_t most = std::min(limits_.max_num_seqs, limits_.step.num_slots);
  while (num_running() < most) {
    Sequence* const next = NextWaiting();
    if (next == nullptr) return;
    if (!cohorts_.HasRoom(cohort, std::min(most, num_running() + num_waiting()))) return;
    Sequence& sequence = *next;
    // After a preemption its last steps may still be in flight: their tokens belong into the slot.
    if (sequence.steps_in_flight() > 0 || builder_.RoomFor(sequence) == 0) return;
    const int64_t room = UnpromisedBlocks();
    if (room <= 0 || !FindReusable(sequence)) return;
    // Blocks that somebody refers to cost nothing; those that are only cached are free ones.
    const auto shared = std::count_if(reusable_.begin(), reusable_.end(),
                                      [&](BlockId b) { return blocks_.references(b) > 0; });
    if (Demand(sequence) - shared > room) return;
    Open(sequence, cohort);
    TryAddRow(sequence);
    CHECK(sequence.last_step() == next_step_, "sequence {} was opened without a row",
          sequence.id().value);
  }
}

Sequence* Scheduler::NextWaiting() const {
  for (Sequence* sequence : waiting_) {
    if (only_.empty() || std::find(only_.begin(), only_.end(), sequence->id()) != only_.end()) {
      return sequence;
    }
  }
  return nullptr;
}

std::vector<SequenceId> Scheduler::InFlight() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, sequence] : sequences_) {
    const bool ended = sequence->state() == Sequence::State::kFinished;
    if (!ended && sequence->steps_in_flight() > 0) ids.push_back(id);
  }
  return ids;
}

void Scheduler::TryAddRow(Sequence& sequence) {
  const int32_t wanted = builder_.RoomFor(sequence);
  if (wanted == 0) return;
  const int32_t num_tokens = Reserve(sequence, wanted);
  if (num_tokens == 0) return;
  builder_.AddRow(sequence, num_tokens);
  Publish(sequence);
}

void Scheduler::Publish(Sequence& sequence) {
  if (limits_.enable_prefix_caching) sequence.PublishBlocks(keys_, blocks_);
}

int32_t Scheduler::Reserve(Sequence& sequence, int32_t wanted) {
  const auto covered = [&] {
    const int32_t positions =
        static_cast<int32_t>(sequence.blocks().size()) * limits_.step.tokens_per_block;
    return positions - sequence.num_planned();
  };
  while (covered() < wanted) {
    std::optional<BlockId> block = blocks_.Take();
    if (!block.has_value() && covered() == 0) block = TakeByPreempting(sequence);
    if (!block.has_value()) break;
    sequence.AddBlock(*block);
  }
  return std::min(wanted, covered());
}

std::optional<BlockId> Scheduler::TakeByPreempting(const Sequence& sequence) {
  // Who has a row in this plan already is spared: then the plan is not empty, and this sequence's
  // turn comes later.
  while (Sequence* victim = cohorts_.YoungestAfter(sequence, next_step_)) {
    Preempt(*victim);
    if (std::optional<BlockId> block = blocks_.Take(); block.has_value()) return block;
  }
  return std::nullopt;
}

int32_t Scheduler::Demand(const Sequence& sequence) const {
  const int64_t grown = std::min<int64_t>(int64_t{sequence.num_known()} + horizon_.tokens(),
                                          sequence.max_positions());
  const int32_t held = static_cast<int32_t>(sequence.blocks().size());
  return std::max(0, blocks_.BlocksFor(static_cast<int32_t>(grown)) - held);
}

int64_t Scheduler::UnpromisedBlocks() const {
  if (num_running() == 0) return blocks_.num_free();
  int64_t promised = blocks_.num_blocks() / kBlocksPerSpareBlock;
  for (int32_t cohort = 0; cohort < cohorts_.num_cohorts(); ++cohort) {
    for (const Sequence* running : cohorts_.at(cohort)) promised += Demand(*running);
  }
  return blocks_.num_free() - promised;
}

bool Scheduler::FindReusable(Sequence& sequence) {
  reusable_.clear();
  const int32_t num_reusable = sequence.num_reusable() / limits_.step.tokens_per_block;
  for (int32_t i = 0; limits_.enable_prefix_caching && i < num_reusable; ++i) {
    const std::optional<BlockId> found = blocks_.Find(sequence.KeyOf(i, keys_));
    if (!found.has_value()) break;
    reusable_.push_back(*found);
  }
  if (!sequence.group().has_value()) return true;
  const int32_t of_prompt =
      std::min(num_reusable, sequence.num_prompt_tokens() / limits_.step.tokens_per_block);
  bool one_runs = false;
  for (int32_t cohort = 0; cohort < cohorts_.num_cohorts(); ++cohort) {
    for (const Sequence* running : cohorts_.at(cohort)) {
      if (std::ssize(reusable_) >= of_prompt) return true;
      if (running->group() != sequence.group()) continue;
      one_runs = true;
      if (running->num_planned() < of_prompt * limits_.step.tokens_per_block) continue;
      reusable_.assign(running->blocks().begin(), running->blocks().begin() + of_prompt);
    }
  }
  return std::ssize(reusable_) >= of_prompt || !one_runs;
}

void Scheduler::Open(Sequence& sequence, int32_t cohort) {
  waiting_.erase(&sequence);
  sequence.ReserveMemory(limits_.step.tokens_per_block);
  for (const BlockId block : reusable_) {
    blocks_.Share(block);
    sequence.AddBlock(block);
  }
  const bool is_new = sequence.num_cached_tokens() < 0;
  sequence.Open(free_slots_.back(),
                static_cast<int32_t>(reusable_.size()) * limits_.step.tokens_per_block);
  free_slots_.pop_back();
  cohorts_.Insert(cohort, &sequence);
  builder_.Open(sequence);
  if (!is_new || !limits_.enable_prefix_caching || sequence.scores_prompt()) return;
  counts_.queries += sequence.num_prompt_tokens();
  counts_.hits += sequence.num_cached_tokens();
}

int32_t Scheduler::NumCachedTokens(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? 0 : std::max(0, found->second->num_cached_tokens());
}

void Scheduler::LeaveRunning(Sequence& sequence, Sequence::State next) {
  cohorts_.Remove(&sequence);
  closed_.push_back(sequence.slot());
  free_slots_.push_back(sequence.slot());
  sequence.ReleaseBlocks(blocks_);
  sequence.Close(next);
}

void Scheduler::Preempt(Sequence& sequence) {
  LeaveRunning(sequence, Sequence::State::kWaiting);
  waiting_.insert(&sequence);
  ++num_preemptions_;
}

void Scheduler::End(Sequence& sequence) {
  if (sequence.state() == Sequence::State::kRunning) {
    LeaveRunning(sequence, Sequence::State::kFinished);
  } else {
    waiting_.erase(&sequence);
    sequence.Close(Sequence::State::kFinished);
  }
  // Records of steps in flight point to it.
  if (sequence.steps_in_flight() == 0) sequences_.erase(sequence.id());
}

absl::StatusOr<absl::Span<const TokenEvent>> Scheduler::Commit(const step::StepResult& result) {
  if (num_in_flight_ == 0) return Internal("step {}: none is in flight", result.id.value);
  const StepRecord& record = RecordAt(0);
  if (result.id != record.id || result.epoch != epoch_) {
    return Internal("expected an answer to step {} of epoch {}, got step {} of epoch {}",
                    record.id.value, epoch_.value, result.id.value, result.epoch.value);
  }
  if (std::ssize(result.samples) != record.num_samples) {
    return Internal("step {}: expected {} samples, got {}", record.id.value, record.num_samples,
                    result.samples.size());
  }
  events_.clear();
  for (const RowRecord& row : record.rows) CommitRow(row, result);
  oldest_ = (oldest_ + 1) % static_cast<int32_t>(records_.size());
  --num_in_flight_;
  return absl::MakeConstSpan(events_);
}

void Scheduler::CommitRow(const RowRecord& row, const step::StepResult& result) {
  Sequence& sequence = *row.sequence;
  const SequenceId id = sequence.id();
  sequence.CommitRow();
  if (sequence.state() == Sequence::State::kFinished) {
    if (sequence.steps_in_flight() == 0) sequences_.erase(id);
    return;
  }
  using Kind = TokenEvent::Kind;
  const int32_t num_samples = row.num_scores + (row.draws ? 1 : 0);
  for (int32_t i = row.first_sample; i < row.first_sample + num_samples; ++i) {
    const step::SampleResult& sample = result.samples[static_cast<size_t>(i)];
    if (!sample.finite) {
      // If a device made these and not the model, nobody else is to begin with them.
      for (const BlockId block : sequence.blocks()) blocks_.Forget(block);
      events_.push_back({id, Kind::kEnd, 0, -1, Finish::kNotFinite});
      return End(sequence);
    }
    if (i < row.first_sample + row.num_scores) {
      sequence.CommitScore();
      events_.push_back({id, Kind::kPromptScore, sample.token, i, Finish::kNone});
      continue;
    }
    const Finish finish = sequence.CommitDraw(sample.token);
    if (sequence.state() == Sequence::State::kRunning) Publish(sequence);
    events_.push_back({id, Kind::kToken, sample.token, i, finish});
    if (finish != Finish::kNone) return End(sequence);
  }
  if (row.ends_prompt && sequence.max_output_tokens() == 0) {
    events_.push_back({id, Kind::kEnd, 0, -1, Finish::kLength});
    End(sequence);
  }
}

void Scheduler::Rewind(Epoch epoch) {
  epoch_ = epoch;
  next_step_ = StepId{0};
  next_cohort_ = 0;
  oldest_ = 0;
  num_in_flight_ = 0;
  for (int32_t cohort = 0; cohort < cohorts_.num_cohorts(); ++cohort) {
    while (!cohorts_.at(cohort).empty()) {
      Sequence& sequence = *cohorts_.at(cohort).back();
      LeaveRunning(sequence, Sequence::State::kWaiting);
      waiting_.insert(&sequence);
    }
  }
  closed_.clear();  // the workers start with an empty slot table
  blocks_.ForgetAll();
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    it->second->ForgetSteps();
    const auto current = it++;
    if (current->second->state() == Sequence::State::kFinished) sequences_.erase(current);
  }
}

}  // namespace polyreme::sched
