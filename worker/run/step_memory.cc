#include "worker/run/step_memory.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "worker/model/model.h"
#include "worker/run/sampler.h"
#include "worker/run/step_inputs.h"
#include "worker/run/token_feedback.h"

namespace polyreme::run {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;
// Recordings of all row counts over 80 layers (tens of thousands of nodes), and the kernels that
// libraries load when they are first used.
constexpr int64_t kRecordingReserve = 400 * kMebibyte;
// NCCL's channels, proxies and registered windows of a tensor group and a pipeline column: 1.2 to
// 1.4 GiB seen on 2x H200 with NCCL 2.28.
constexpr int64_t kCommunicatorReserve = 1536 * kMebibyte;
// A process of its own on the device (context, code), where it cannot be measured: several share
// the device and what is in use cannot be told apart, or there is none yet.
constexpr int64_t kProcessReserve = 600 * kMebibyte;

double Gibibytes(int64_t bytes) {
  return static_cast<double>(bytes) / 0x1p30;
}

// Gives buffers that have sizes and no memory, and adds the sizes up.
class CountingDevice final : public Device {
 public:
  std::string name() const override { return "counting"; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return Count(bytes, device_bytes_); }
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override { return Count(bytes, host_bytes_); }
  absl::StatusOr<std::unique_ptr<Lane>> MakeLane(int64_t) override { return Refuse(); }
  absl::Status CopyFromHost(const void*, int64_t, void*) override { return Refuse(); }
  absl::Status CopyToHost(const void*, int64_t, void*) override { return Refuse(); }
  void Upload(Lane& lane, const void*, int64_t, void*) override { lane.Fail(Refuse()); }
  void Download(Lane& lane, const void*, int64_t, void*) override { lane.Fail(Refuse()); }
  void Copy(Lane& lane, const void*, int64_t, void*) override { lane.Fail(Refuse()); }
  int64_t FreeBytes() const override { return 0; }
  int64_t TotalBytes() const override { return 0; }

  // What was asked for since the last call.
  int64_t TakeDeviceBytes() { return std::exchange(device_bytes_, 0); }
  int64_t host_bytes() const { return host_bytes_; }

 private:
  static Buffer Count(int64_t bytes, int64_t& total) {
    total += bytes;
    return Buffer(nullptr, bytes, [](void*) {});
  }
  static absl::Status Refuse() { return Unimplemented("a device that only counts"); }

  int64_t device_bytes_ = 0;
  int64_t host_bytes_ = 0;
};

int64_t ArenaBytes(const StepShape& shape) {
  constexpr int64_t kAlignment = 64;
  const int64_t num_tokens = shape.limits.max_step_tokens;
  const int64_t hidden = num_tokens * shape.spec.width * SizeOf(shape.activations) + kAlignment;
  const int64_t layers =
      model::LayersScratchBytes(shape.spec, shape.shard, shape.activations, num_tokens);
  // Embedding and head run before and after the layers, in the same memory; the embedding's sum
  // needs none.
  int64_t head = 0;
  if (shape.shard.has_head) {
    head = model::HeadScratchBytes(shape.spec, shape.shard, shape.shards, shape.activations,
                                   shape.HeadChunk()) +
           Sampler::ScratchBytes(shape.HeadChunk(), shape.limits.vocabulary);
  }
  return hidden + std::max(layers, head);
}

}  // namespace

int64_t StepShape::HeadChunk() const {
  return std::min<int64_t>(head_chunk_samples, limits.max_step_samples);
}

ops::Workload WorkloadOf(const StepShape& shape) {
  ops::Workload workload;
  workload.max_tokens = shape.limits.max_step_tokens;
  workload.max_rows = std::min(shape.limits.num_slots, shape.limits.max_step_tokens);
  workload.max_samples = shape.shard.has_head ? shape.HeadChunk() : 0;
  workload.max_model_len = shape.limits.max_model_len;
  workload.tokens_per_block = shape.limits.tokens_per_block;
  workload.vocabulary = shape.limits.vocabulary;
  workload.heads = model::HeadsOf(shape.spec, shape.shard);
  workload.kv_dtype = shape.kv_dtype;
  return workload;
}

DeviceReserves ReservesOf(int32_t world_size) {
  return {.communicator_bytes = world_size > 1 ? kCommunicatorReserve : 0,
          .recording_bytes = kRecordingReserve,
          .process_bytes = kProcessReserve};
}

CacheDivision DivideDevice(const CacheShare& share) {
  const DeviceReserves reserves = ReservesOf(share.world_size);
  CacheDivision division;
  division.allowed_bytes =
      static_cast<int64_t>(share.utilization * static_cast<double>(share.total_bytes)) /
      share.ranks_on_device;
  division.used_bytes = share.ranks_on_device > 1 ? share.weight_bytes + reserves.process_bytes
                                                  : share.total_bytes - share.free_bytes;
  division.reserve_bytes = reserves.recording_bytes + reserves.communicator_bytes;
  division.left_bytes = division.allowed_bytes - division.used_bytes - share.step.device_bytes() -
                        division.reserve_bytes;
  return division;
}

absl::StatusOr<int64_t> CacheBudget(const CacheShare& share) {
  const CacheDivision division = DivideDevice(share);
  if (division.left_bytes >= share.sequence_bytes) return division.left_bytes;
  return ResourceExhausted(
      "one sequence of {} tokens needs a cache of {:.2f} GiB, but only {:.2f} GiB are left of the "
      "{:.1f} GiB that --gpu-memory-utilization {:.2f} allows here: {:.2f} GiB are in use (weights "
      "{:.2f} GiB), a step takes {:.2f} GiB, communicators and recordings {:.2f} GiB. Give a "
      "smaller --max-model-len, --max-num-seqs or --max-num-batched-tokens, more GPUs "
      "(--tensor-parallel-size, --pipeline-parallel-size), or a larger --gpu-memory-utilization",
      share.max_model_len, Gibibytes(share.sequence_bytes),
      Gibibytes(std::max<int64_t>(0, division.left_bytes)), Gibibytes(division.allowed_bytes),
      share.utilization, Gibibytes(division.used_bytes), Gibibytes(share.weight_bytes),
      Gibibytes(share.step.device_bytes()), Gibibytes(division.reserve_bytes));
}

StepMemory StepMemoryOf(const StepShape& shape, int64_t workspace_bytes) {
  CountingDevice device;
  StepMemory memory;
  memory.arena_bytes = ArenaBytes(shape);
  memory.workspace_bytes = workspace_bytes;
  CHECK(StepInputs::Make(device, shape.limits).ok());
  memory.input_bytes = device.TakeDeviceBytes();
  if (shape.shard.has_head) {
    CHECK(SamplerMemory::Make(device, shape.limits).ok());
    memory.sampler_bytes = device.TakeDeviceBytes();
  }
  CHECK(FeedbackMemory::Make(device, shape.limits, shape.shard.has_embedding, shape.shard.has_head)
            .ok());
  memory.feedback_bytes = device.TakeDeviceBytes();
  memory.host_bytes = device.host_bytes();
  return memory;
}

}  // namespace polyreme::run
