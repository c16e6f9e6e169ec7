#include "tests/worker/model_harness.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "parallel/base/clock.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/thread_transport.h"
#include "parallel/launch/rendezvous.h"
#include "worker/backend/backend.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/model.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::model {
namespace {

constexpr int32_t kTokensPerBlock = 16;

// The arrays behind a StepBatch, on the CPU.
struct BatchArrays {
  std::vector<int32_t> tokens, positions, token_rows, row_begins = {0}, row_slots, sample_tokens;
  std::vector<int32_t> first_positions;

  BatchArrays(const HarnessStep& step) {
    for (const HarnessRow& row : step) {
      for (size_t i = 0; i < row.tokens.size(); ++i) {
        tokens.push_back(row.tokens[i]);
        positions.push_back(row.first_position + static_cast<int32_t>(i));
        token_rows.push_back(static_cast<int32_t>(row_slots.size()));
      }
      row_begins.push_back(static_cast<int32_t>(tokens.size()));
      row_slots.push_back(row.slot);
      first_positions.push_back(row.first_position);
      sample_tokens.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
  }

  ops::StepBatch View(const std::vector<int32_t>& block_table, int32_t stride) const {
    ops::StepBatch batch;
    batch.num_tokens = static_cast<int32_t>(tokens.size());
    batch.num_rows = batch.num_samples = static_cast<int32_t>(row_slots.size());
    batch.tokens = tokens.data();
    batch.positions = positions.data();
    batch.token_rows = token_rows.data();
    batch.row_begins = row_begins.data();
    batch.row_slots = row_slots.data();
    batch.sample_tokens = sample_tokens.data();
    batch.block_table = block_table.data();
    batch.table_stride = stride;
    batch.tokens_per_block = kTokensPerBlock;
    batch.host_row_begins = row_begins;
    batch.host_row_first_positions = first_positions;
    return batch;
  }
};

// Everything one rank has.
struct RankState {
  std::unique_ptr<backend::Backend> backend;
  weights::ShardWeights weights;
  std::unique_ptr<comm::ProcessGroup> group;
  std::unique_ptr<Lane> lane;
  std::vector<int32_t> block_table;
  int32_t stride = 0;
};

// [shards, n, V] to n rows of the true vocabulary.
void AppendLogits(ConstTensorView logits, int64_t vocabulary,
                  std::vector<std::vector<float>>& rows) {
  const auto* values = logits.As<const float>();
  const int64_t num = logits.shape[1], held = logits.shape[2];
  for (int64_t n = 0; n < num; ++n) {
    std::vector<float>& row = rows.emplace_back();
    for (int64_t token = 0; token < vocabulary; ++token) {
      row.push_back(values[(token / held * num + n) * held + token % held]);
    }
  }
}

std::vector<std::vector<float>> RunStep(RankState& rank, const Model& model,
                                        const kv::KvCache& cache, const HarnessStep& step) {
  const BatchArrays arrays(step);
  const ops::StepBatch batch = arrays.View(rank.block_table, rank.stride);
  Lane& lane = *rank.lane;
  ops::Ops& ops = rank.backend->ops();
  lane.Rewind();
  ops.PrepareAttention(lane, batch, model.layers->heads());
  const TensorView hidden =
      lane.Scratch(ops.activation_dtype(), Shape{batch.num_tokens, rank.weights.spec.width});
  const int stage = rank.group->place().stage;
  if (model.embedding.has_value()) {
    model.embedding->Apply(lane, batch, hidden);
  } else {
    const comm::Communicator::Incoming from{hidden, stage - 1};
    rank.group->pipeline().Exchange(lane, {}, absl::MakeConstSpan(&from, 1));
  }
  model.layers->Forward(lane, batch, cache, hidden);
  std::vector<std::vector<float>> rows;
  if (model.head.has_value()) {
    model.head->Apply(lane, batch, hidden, [&](Range, ConstTensorView logits) {
      AppendLogits(logits, rank.weights.spec.vocabulary, rows);
    });
  } else {
    const comm::Communicator::Outgoing to{hidden, stage + 1};
    rank.group->pipeline().Exchange(lane, absl::MakeConstSpan(&to, 1), {});
  }
  return rows;
}

struct Shared {
  const weights::Checkpoint& checkpoint;
  const plan::ModelSpec& spec;
  const plan::ShardPlan& plan;
  const HarnessOptions& options;
  const std::vector<HarnessStep>& steps;
  launch::Rendezvous& meet;
  comm::ThreadHub& hub;
};

absl::StatusOr<HarnessLogits> RunRank(const Shared& shared, Rank self) {
  const HarnessOptions& options = shared.options;
  RankState rank;
  ASSIGN_OR_RETURN(rank.backend, backend::MakeBackend("cpu", {.num_threads = options.num_threads}));
  ASSIGN_OR_RETURN(
      rank.weights,
      weights::LoadShard(
          shared.checkpoint, shared.spec, shared.plan,
          {.rank = self, .positions = options.positions, .progress = {}, .cancelled = {}},
          rank.backend->packer()));
  comm::ProcessGroup::Options join;
  join.kind = comm::ProcessGroup::Kind::kThreads;
  join.self = self;
  join.epoch = Epoch{1};
  join.deadline = MonotonicNow() + absl::Seconds(60);
  join.hub = &shared.hub;
  ASSIGN_OR_RETURN(rank.group, comm::ProcessGroup::Join(shared.plan.topology(), shared.meet, join));
  ASSIGN_OR_RETURN(rank.lane, rank.backend->device().MakeLane(int64_t{64} << 20));
  comm::ProcessGroup& group = *rank.group;
  rank.lane->SetFailureHook([&group](const absl::Status& why) { group.Abort(why); });

  rank.stride = static_cast<int32_t>((options.positions + kTokensPerBlock - 1) / kTokensPerBlock);
  const int32_t num_blocks = rank.stride * options.num_slots;
  for (int32_t i = 0; i < num_blocks; ++i) rank.block_table.push_back(num_blocks - 1 - i);
  const plan::Shard& shard = rank.weights.shard;
  const kv::KvLayout layout{.num_layers = shard.layers.size(),
                            .tokens_per_block = kTokensPerBlock,
                            .kv_heads = shard.kv_heads.size(),
                            .head_dim = shared.spec.head_dim};
  ASSIGN_OR_RETURN(const kv::KvCache cache,
                   kv::KvCache::Make(rank.backend->device(), layout, num_blocks));
  ASSIGN_OR_RETURN(
      const Model model,
      MakeModel(rank.weights, {.ops = &rank.backend->ops(), .tensor_group = &rank.group->tensor()},
                {.head_chunk_samples = options.head_chunk_samples}));
  HarnessLogits logits;
  for (const HarnessStep& step : shared.steps) {
    logits.push_back(RunStep(rank, model, cache, step));
    RETURN_IF_ERROR(rank.lane->Wait(rank.lane->Mark(), MonotonicNow() + absl::Seconds(60)));
  }
  return logits;
}

}  // namespace

absl::StatusOr<HarnessLogits> RunModel(const std::string& directory, const HarnessOptions& options,
                                       const std::vector<HarnessStep>& steps) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(directory));
  ASSIGN_OR_RETURN(const weights::Checkpoint checkpoint, weights::Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const plan::Topology topology,
                   plan::Topology::Make(options.stages, options.shards));
  ASSIGN_OR_RETURN(const plan::ShardPlan plan, plan::ShardPlan::Make(spec, topology, options.plan));
  launch::InMemoryRendezvous meet;
  comm::ThreadHub hub;
  const Shared shared{checkpoint, spec, plan, options, steps, meet, hub};
  std::vector<absl::StatusOr<HarnessLogits>> results(static_cast<size_t>(topology.world_size()),
                                                     absl::UnknownError("did not run"));
  {
    std::vector<std::jthread> ranks;
    for (int32_t rank = 0; rank < topology.world_size(); ++rank) {
      ranks.emplace_back(
          [&, rank] { results[static_cast<size_t>(rank)] = RunRank(shared, Rank{rank}); });
    }
  }
  for (const absl::StatusOr<HarnessLogits>& result : results) RETURN_IF_ERROR(result.status());
  return results.back();
}

std::vector<HarnessStep> ForcedSteps(const std::vector<int32_t>& prompt,
                                     const std::vector<int32_t>& forced, size_t chunk) {
  std::vector<HarnessStep> steps;
  for (size_t begin = 0; begin < prompt.size(); begin += chunk) {
    const size_t end = std::min(prompt.size(), begin + chunk);
    steps.push_back({{.slot = 0,
                      .first_position = static_cast<int32_t>(begin),
                      .tokens = {prompt.begin() + static_cast<int64_t>(begin),
                                 prompt.begin() + static_cast<int64_t>(end)}}});
  }
  for (size_t i = 0; i + 1 < forced.size(); ++i) {
    steps.push_back({{.slot = 0,
                      .first_position = static_cast<int32_t>(prompt.size() + i),
                      .tokens = {forced[i]}}});
  }
  return steps;
}

}  // namespace polyreme::model
