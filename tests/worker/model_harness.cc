#include "tests/worker/model_harness.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "parallel/base/clock.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/thread_transport.h"
#include "parallel/launch/rendezvous.h"
#include "tests/worker/staged_communicator.h"
#include "worker/backend/backend.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/model.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::model {
namespace {

constexpr int32_t kTokensPerBlock = 16;
constexpr absl::Duration kPatience = absl::Seconds(60);

// Integers in the memory of a device.
absl::StatusOr<Buffer> Upload(Device& device, const std::vector<int32_t>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(int32_t));
  ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes));
  RETURN_IF_ERROR(device.CopyFromHost(values.data(), bytes, buffer.data()));
  return buffer;
}

// The arrays behind a StepBatch, on the host and on the device.
class BatchArrays {
 public:
  BatchArrays(const HarnessStep& step) {
    for (const HarnessRow& row : step) {
      for (size_t i = 0; i < row.tokens.size(); ++i) {
        tokens_.push_back(row.tokens[i]);
        positions_.push_back(row.first_position + static_cast<int32_t>(i));
        token_rows_.push_back(static_cast<int32_t>(row_slots_.size()));
      }
      row_begins_.push_back(static_cast<int32_t>(tokens_.size()));
      row_slots_.push_back(row.slot);
      first_positions_.push_back(row.first_position);
      sample_tokens_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    }
  }

  // The views are this object's.
  absl::StatusOr<ops::StepBatch> On(Device& device) {
    ops::StepBatch batch;
    batch.num_tokens = static_cast<int32_t>(tokens_.size());
    batch.num_rows = batch.num_samples = static_cast<int32_t>(row_slots_.size());
    ASSIGN_OR_RETURN(batch.tokens, Place(device, tokens_));
    ASSIGN_OR_RETURN(batch.positions, Place(device, positions_));
    ASSIGN_OR_RETURN(batch.token_rows, Place(device, token_rows_));
    ASSIGN_OR_RETURN(batch.row_begins, Place(device, row_begins_));
    ASSIGN_OR_RETURN(batch.row_slots, Place(device, row_slots_));
    ASSIGN_OR_RETURN(batch.sample_tokens, Place(device, sample_tokens_));
    batch.tokens_per_block = kTokensPerBlock;
    batch.host_row_begins = row_begins_;
    batch.host_row_first_positions = first_positions_;
    return batch;
  }

 private:
  absl::StatusOr<const int32_t*> Place(Device& device, const std::vector<int32_t>& values) {
    ASSIGN_OR_RETURN(Buffer buffer, Upload(device, values));
    return static_cast<const int32_t*>(placed_.emplace_back(std::move(buffer)).data());
  }

  std::vector<int32_t> tokens_, positions_, token_rows_, row_begins_ = {0}, row_slots_,
                                                         sample_tokens_, first_positions_;
  std::vector<Buffer> placed_;
};

// Everything one rank has.
struct RankState {
  std::unique_ptr<backend::Backend> backend;
  std::unique_ptr<StagedFactory> staged;  // outlives the group
  weights::ShardWeights weights;
  std::unique_ptr<comm::ProcessGroup> group;
  std::unique_ptr<Lane> lane;
  Buffer block_table;
  int32_t stride = 0;
};

// [shards, n, V] on the device to n rows of the true vocabulary.
absl::Status AppendLogits(RankState& rank, ConstTensorView logits,
                          std::vector<std::vector<float>>& rows) {
  RETURN_IF_ERROR(rank.lane->Wait(rank.lane->Mark(), MonotonicNow() + kPatience));
  std::vector<float> values(static_cast<size_t>(logits.num_elements()));
  RETURN_IF_ERROR(rank.backend->device().CopyToHost(logits.data, logits.bytes(), values.data()));
  const int64_t num = logits.shape[1], held = logits.shape[2];
  for (int64_t n = 0; n < num; ++n) {
    std::vector<float>& row = rows.emplace_back();
    for (int64_t token = 0; token < rank.weights.spec.vocabulary; ++token) {
      row.push_back(values[static_cast<size_t>((token / held * num + n) * held + token % held)]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<float>>> RunStep(RankState& rank, const Model& model,
                                                        const kv::KvCache& cache,
                                                        const HarnessStep& step) {
  BatchArrays arrays(step);
  ASSIGN_OR_RETURN(ops::StepBatch batch, arrays.On(rank.backend->device()));
  batch.block_table = static_cast<const int32_t*>(rank.block_table.data());
  batch.table_stride = rank.stride;
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
      if (const absl::Status status = AppendLogits(rank, logits, rows); !status.ok()) {
        lane.Fail(status);
      }
    });
  } else {
    const comm::Communicator::Outgoing to{hidden, stage + 1};
    rank.group->pipeline().Exchange(lane, absl::MakeConstSpan(&to, 1), {});
  }
  // The step's arrays must stay until here.
  RETURN_IF_ERROR(lane.Wait(lane.Mark(), MonotonicNow() + kPatience));
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

absl::Status Join(const Shared& shared, Rank self, RankState& rank) {
  comm::ProcessGroup::Options join;
  join.nccl = rank.backend->communicators();
  if (shared.options.backend.staged) {
    rank.staged = std::make_unique<StagedFactory>(shared.hub, rank.backend->device());
    join.nccl = rank.staged.get();
  }
  join.kind =
      join.nccl != nullptr ? comm::ProcessGroup::Kind::kNccl : comm::ProcessGroup::Kind::kThreads;
  join.job_token = "ranks of one test";  // of the way back from last stage to first
  join.self = self;
  join.epoch = Epoch{1};
  join.deadline = MonotonicNow() + kPatience;
  join.hub = &shared.hub;
  ASSIGN_OR_RETURN(rank.group, comm::ProcessGroup::Join(shared.plan.topology(), shared.meet, join));
  return absl::OkStatus();
}

absl::StatusOr<HarnessLogits> RunRank(const Shared& shared, Rank self) {
  const HarnessOptions& options = shared.options;
  RankState rank;
  backend::BackendOptions backend_options = options.backend.options();
  backend_options.num_threads = options.num_threads;
  backend_options.device_index = options.backend.staged ? 0 : self.value;
  ASSIGN_OR_RETURN(rank.backend, backend::MakeBackend(options.backend.device, backend_options));
  ASSIGN_OR_RETURN(
      rank.weights,
      weights::LoadShard(
          shared.checkpoint, shared.spec, shared.plan,
          {.rank = self, .positions = options.positions, .progress = {}, .cancelled = {}},
          rank.backend->packer()));
  RETURN_IF_ERROR(Join(shared, self, rank));
  ASSIGN_OR_RETURN(rank.lane, rank.backend->device().MakeLane(int64_t{64} << 20));
  comm::ProcessGroup& group = *rank.group;
  rank.lane->SetFailureHook([&group](const absl::Status& why) { group.Abort(why); });
  RETURN_IF_ERROR(group.tensor().UseArena(rank.lane->arena()));

  rank.stride = static_cast<int32_t>((options.positions + kTokensPerBlock - 1) / kTokensPerBlock);
  const int32_t num_blocks = rank.stride * options.num_slots;
  std::vector<int32_t> table;
  for (int32_t i = 0; i < num_blocks; ++i) table.push_back(num_blocks - 1 - i);
  ASSIGN_OR_RETURN(rank.block_table, Upload(rank.backend->device(), table));
  const plan::Shard& shard = rank.weights.shard;
  const kv::KvLayout layout{.num_layers = shard.layers.size(),
                            .tokens_per_block = kTokensPerBlock,
                            .kv_heads = shard.kv_heads.size(),
                            .head_dim = shared.spec.head_dim,
                            .dtype = rank.backend->ops().activation_dtype()};
  ASSIGN_OR_RETURN(const kv::KvCache cache,
                   kv::KvCache::Make(rank.backend->device(), layout, num_blocks));
  ASSIGN_OR_RETURN(
      const Model model,
      MakeModel(rank.weights, {.ops = &rank.backend->ops(), .tensor_group = &rank.group->tensor()},
                {.head_chunk_samples = options.head_chunk_samples}));
  HarnessLogits logits;
  for (const HarnessStep& step : shared.steps) {
    ASSIGN_OR_RETURN(logits.emplace_back(), RunStep(rank, model, cache, step));
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
