#include "tests/sim/sim_shard.h"

#include <algorithm>

namespace polyreme::sim {

Shard::Shard(const Layout& layout, int32_t rank, const step::StepLimits& limits, Plant plant,
             uint64_t seed)
    : layout_(layout),
      rank_(rank),
      limits_(limits),
      plant_(plant),
      slots_(limits),
      validator_(limits),
      random_(seed) {
  cache_.resize(static_cast<size_t>(limits.num_blocks * limits.tokens_per_block));
  for (uint64_t& cell : cache_) cell = Mix(seed, static_cast<uint64_t>(&cell - cache_.data()));
}

void Shard::BeginEpoch() {
  if (plant_ == Plant::kKeepsOldSlots) return;
  slots_ = step::SlotTable(limits_);
  counts_.clear();
}

size_t Shard::Place(SlotId slot, int32_t position) const {
  const BlockId block =
      slots_.at(slot).blocks[static_cast<size_t>(position / limits_.tokens_per_block)];
  return static_cast<size_t>(block.value * limits_.tokens_per_block +
                             position % limits_.tokens_per_block);
}

absl::Status Shard::Accept(const step::StepPlan& plan) {
  RETURN_IF_ERROR(validator_.Check(plan, slots_));
  if (plant_ == Plant::kWipesClosedSlots) {
    for (const SlotId closed : plan.closed) {
      const auto size = static_cast<int32_t>(slots_.at(closed).blocks.size());
      for (int32_t p = 0; p < size * limits_.tokens_per_block; ++p) cache_[Place(closed, p)] = 0;
    }
  }
  slots_.Apply(plan);
  const auto block_size = static_cast<int64_t>(limits_.tokens_per_block);
  for (const step::BlockCopy& copy : plan.copies) {
    std::copy_n(cache_.begin() + copy.from.value * block_size, block_size,
                cache_.begin() + copy.to.value * block_size);
  }
  for (const step::SlotOpen& opened : plan.opened) {
    OutputCounts& counts = counts_[opened.slot.value];
    counts.clear();
    if (plant_ == Plant::kForgetsOutputCounts) continue;
    const step::SlotTable::Slot& slot = slots_.at(opened.slot);
    for (size_t i = static_cast<size_t>(slot.num_prompt_tokens); i < slot.tokens.size(); ++i) {
      ++counts[slot.tokens[i]];
    }
  }
  return absl::OkStatus();
}

void Shard::WriteRow(const step::StepPlan& plan, size_t row_index, int32_t first_index,
                     const std::vector<uint64_t>& inputs) {
  const step::StepRow& row = plan.rows[row_index];
  int32_t num_written = row.num_tokens;
  if (plant_ == Plant::kSkipsAWrite && num_written > 1 && random_.OneIn(4)) --num_written;
  if (plant_ == Plant::kOneShardSkipsAStep && rank_ == layout_.world_size() - 1 &&
      random_.OneIn(20)) {
    num_written = 0;
  }
  for (int32_t i = 0; i < num_written; ++i) {
    cache_[Place(row.slot, row.first_position + i)] = inputs[static_cast<size_t>(first_index + i)];
  }
}

void Shard::ReadRow(const step::StepPlan& plan, size_t row_index,
                    std::vector<uint64_t>& parts) const {
  const step::StepRow& row = plan.rows[row_index];
  History history(layout_.StageOf(rank_), layout_.ShardOf(rank_));
  for (int32_t p = 0; p < row.first_position + row.num_tokens; ++p) {
    history.Push(cache_[Place(row.slot, p)]);
    if (p >= row.first_position) parts.push_back(history.Part());
  }
}

// Every layer writes the keys and values of all rows before any row attends.
std::vector<uint64_t> Shard::Compute(const step::StepPlan& plan,
                                     const std::vector<uint64_t>& inputs) {
  std::vector<uint64_t> parts;
  parts.reserve(plan.tokens.size());
  const bool row_by_row = plant_ == Plant::kRowsReadBeforeOthersWrite;
  if (row_by_row) {
    // The last row first, so that whoever is planned after another reads before it.
    int32_t first = static_cast<int32_t>(plan.tokens.size());
    std::vector<std::vector<uint64_t>> of_rows(plan.rows.size());
    for (size_t r = plan.rows.size(); r-- > 0;) {
      first -= plan.rows[r].num_tokens;
      WriteRow(plan, r, first, inputs);
      ReadRow(plan, r, of_rows[r]);
    }
    for (const auto& row : of_rows) parts.insert(parts.end(), row.begin(), row.end());
    return parts;
  }
  int32_t first = 0;
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    WriteRow(plan, r, first, inputs);
    first += plan.rows[r].num_tokens;
  }
  for (size_t r = 0; r < plan.rows.size(); ++r) ReadRow(plan, r, parts);
  return parts;
}

bool Shard::IsFinite(const step::SlotTable::Slot& slot, int32_t position) const {
  const int32_t known = std::min(slot.num_prompt_tokens, position);
  const auto end = slot.tokens.begin() + known;
  return std::find(slot.tokens.begin(), end, kPoison) == end;
}

std::vector<step::SampleResult> Shard::Sample(const step::StepPlan& plan,
                                              const std::vector<uint64_t>& outputs) {
  step::RowFinder finder;
  finder.Reset(plan);
  std::vector<step::SampleResult> results;
  for (const step::Sample& sample : plan.samples) {
    const step::SlotTable::Slot& slot = slots_.at(sample.slot);
    const uint64_t hidden = outputs[static_cast<size_t>(sample.token_index)];
    const int32_t position = finder.PositionOf(sample.token_index) + 1;
    if (!IsFinite(slot, position)) {
      results.push_back({.token = 0, .finite = false});
      continue;
    }
    if (sample.kind != step::Sample::Kind::kDraw) {
      results.push_back(Score(hidden, slot.sampling, sample.target));
      continue;
    }
    step::SamplingParams sampling = slot.sampling;
    if (plant_ == Plant::kForgetsTheChoice) sampling.choice = 0;
    const int32_t noise_at =
        plant_ == Plant::kNoisesByStep ? static_cast<int32_t>(plan.id.value) : position;
    OutputCounts& counts = counts_[sample.slot.value];
    results.push_back(Draw(hidden, sampling, noise_at, slot.num_prompt_tokens, counts));
    ++counts[results.back().token];
  }
  return results;
}

}  // namespace polyreme::sim
