// How a process group computes steps: every shard of a stage meets in it, hidden states go from
// stage to stage, and what is drawn in the last stage is fed back to the first.
#include <algorithm>
#include <utility>

#include "tests/sim/sim_process.h"

namespace polyreme::sim {

bool SimCluster::Takes(const Group& group, int32_t rank) const {
  const ProcessPtr& member = group.members[static_cast<size_t>(rank)];
  return member->alive && !member->hung && member->serves && member->epoch == group.epoch;
}

void SimCluster::TryStep(const ProcessPtr& process) {
  const ProcessPtr keep = process;
  if (!process->alive || process->hung || !process->serves) return;
  if (process->plans.empty() || process->has_accepted) return;
  const step::StepPlan& plan = process->plans.front();
  absl::Status accepted = plan.epoch == process->epoch
                              ? process->shard.Accept(plan)
                              : InvalidArgument("a plan of epoch {}, in epoch {}", plan.epoch.value,
                                                process->epoch.value);
  if (!accepted.ok()) {
    if (!excused_.contains(process->epoch.value)) {
      report_.Fail("rank {} refuses a plan: {}", process->rank, Message(accepted));
    }
    process->serves = false;
    return SendFailed(process, process->epoch, std::move(accepted));
  }
  for (const step::StepRow& row : plan.rows) {
    const std::vector<TokenId>& tokens = process->shard.slots().at(row.slot).tokens;
    if (std::find(tokens.begin(), tokens.end(), kKiller) != tokens.end()) {
      return Die(process, "a killing request");
    }
  }
  process->has_accepted = true;
  Group& group = *groups_.at(process->epoch.value);
  const int32_t stage = settings_.layout.StageOf(process->rank);
  ++group.arrived[static_cast<size_t>(stage)][plan.id.value];
  TryCompute(group, stage, plan.id.value);
}

bool SimCluster::HasInputs(const Group& group, int32_t stage, const step::StepPlan& plan) const {
  if (stage > 0) return group.hidden[static_cast<size_t>(stage)].contains(plan.id.value);
  return std::all_of(plan.rows.begin(), plan.rows.end(), [&](const step::StepRow& row) {
    if (!row.first_token.has_value()) return true;
    return std::all_of(group.draws.begin(), group.draws.end(), [&](const auto& draws) {
      return draws.contains(row.first_token->step.value);
    });
  });
}

void SimCluster::TryCompute(Group& group, int32_t stage, int64_t step) {
  const auto index = static_cast<size_t>(stage);
  if (group.running[index] >= 0) return;
  const auto arrived = group.arrived[index].find(step);
  if (arrived == group.arrived[index].end() || arrived->second != settings_.layout.shards) return;
  for (int32_t shard = 0; shard < settings_.layout.shards; ++shard) {
    if (!Takes(group, settings_.layout.RankOf(stage, shard))) return;
  }
  const ProcessPtr& first = group.members[static_cast<size_t>(settings_.layout.RankOf(stage, 0))];
  if (!HasInputs(group, stage, first->plans.front())) return;
  group.running[index] = step;
  absl::Duration takes = random_.Between(absl::Microseconds(100), settings_.step_time_most);
  if (TakePending(Fault::kSlowStep)) takes = absl::Seconds(200);
  loop_.After(takes, [this, keep = group.shared_from_this(), stage, step] {
    keep->running[static_cast<size_t>(stage)] = -1;
    Compute(*keep, stage, step);
  });
}

std::vector<uint64_t> SimCluster::InputsOf(Group& group, int32_t rank, const step::StepPlan& plan) {
  const int32_t stage = settings_.layout.StageOf(rank);
  if (stage > 0) return group.hidden[static_cast<size_t>(stage)].at(plan.id.value);
  std::vector<uint64_t> inputs(plan.tokens.begin(), plan.tokens.end());
  auto& draws = group.draws[static_cast<size_t>(settings_.layout.ShardOf(rank))];
  size_t first = 0;
  for (const step::StepRow& row : plan.rows) {
    if (row.first_token.has_value()) {
      const std::vector<TokenId>& drawn = draws.at(row.first_token->step.value);
      auto sample = static_cast<size_t>(row.first_token->sample);
      if (settings_.plant == Plant::kFeedsBackAnotherSample) sample = (sample + 1) % drawn.size();
      inputs[first] = static_cast<uint64_t>(drawn[sample]);
    }
    first += static_cast<size_t>(row.num_tokens);
  }
  draws.erase(draws.begin(),
              draws.lower_bound(plan.id.value - 2 * settings_.limits.max_steps_in_flight));
  return inputs;
}

void SimCluster::Compute(Group& group, int32_t stage, int64_t step) {
  std::vector<uint64_t> outputs;
  for (int32_t shard = 0; shard < settings_.layout.shards; ++shard) {
    const int32_t rank = settings_.layout.RankOf(stage, shard);
    // Somebody was lost meanwhile: the others stand in the collective until they are told.
    if (!Takes(group, rank)) return;
  }
  for (int32_t shard = 0; shard < settings_.layout.shards; ++shard) {
    const int32_t rank = settings_.layout.RankOf(stage, shard);
    Process& member = *group.members[static_cast<size_t>(rank)];
    const step::StepPlan& plan = member.plans.front();
    CHECK(plan.id.value == step, "rank {} is at step {}, not {}", rank, plan.id.value, step);
    const std::vector<uint64_t> parts = member.shard.Compute(plan, InputsOf(group, rank, plan));
    outputs.resize(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) outputs[i] += parts[i];
  }
  const int32_t first = settings_.layout.RankOf(stage, 0);
  const step::StepPlan plan = group.members[static_cast<size_t>(first)]->plans.front();
  FinishStage(group, stage, plan, outputs);
}

void SimCluster::FinishStage(Group& group, int32_t stage, const step::StepPlan& plan,
                             const std::vector<uint64_t>& outputs) {
  const int64_t step = plan.id.value;
  const bool is_last = stage == settings_.layout.stages - 1;
  if (is_last) {
    SampleAndFeedBack(group, plan, outputs);
  } else {
    loop_.After(Delay(), [this, keep = group.shared_from_this(), stage, step, outputs] {
      keep->hidden[static_cast<size_t>(stage + 1)][step] = outputs;
      TryCompute(*keep, stage + 1, step);
    });
  }
  group.arrived[static_cast<size_t>(stage)].erase(step);
  group.hidden[static_cast<size_t>(stage)].erase(step);
  for (int32_t shard = 0; shard < settings_.layout.shards; ++shard) {
    const int32_t rank = settings_.layout.RankOf(stage, shard);
    const ProcessPtr member = group.members[static_cast<size_t>(rank)];
    member->plans.pop_front();
    member->has_accepted = false;
    step::StepResult result{plan.id, group.epoch, {}, {}};
    if (is_last && shard == 0) result.samples = group.computed.at(step);
    SendResult(member, std::move(result));
    TryStep(member);
  }
}

void SimCluster::SampleAndFeedBack(Group& group, const step::StepPlan& plan,
                                   const std::vector<uint64_t>& outputs) {
  const int64_t step = plan.id.value;
  for (int32_t shard = 0; shard < settings_.layout.shards; ++shard) {
    const int32_t rank = settings_.layout.RankOf(settings_.layout.stages - 1, shard);
    Process& member = *group.members[static_cast<size_t>(rank)];
    const std::vector<step::SampleResult> samples =
        member.shard.Sample(member.plans.front(), outputs);
    if (shard == 0) group.computed[step] = samples;
    if (samples != group.computed[step]) {
      report_.Fail("step {}: shard {} of the last stage drew other tokens than shard 0", step,
                   shard);
    }
    std::vector<TokenId> tokens;
    for (const step::SampleResult& sample : samples) tokens.push_back(sample.token);
    const absl::Duration delay = settings_.layout.stages == 1 ? absl::ZeroDuration() : Delay();
    loop_.After(delay,
                [this, keep = group.shared_from_this(), shard, step, tokens = std::move(tokens)] {
                  keep->draws[static_cast<size_t>(shard)][step] = tokens;
                  const ProcessPtr& first = keep->members[static_cast<size_t>(shard)];
                  if (!Takes(*keep, first->rank) || first->plans.empty()) return;
                  TryCompute(*keep, 0, first->plans.front().id.value);
                });
  }
  group.computed.erase(group.computed.begin(),
                       group.computed.lower_bound(step - 2 * settings_.limits.max_steps_in_flight));
}

}  // namespace polyreme::sim
