#include "worker/run/rank_memory.h"

#include "worker/backend/device_kind.h"

namespace polyreme::run {

kv::KvLayout KvLayoutOf(const RankSetup& setup) {
  return {setup.shard().layers.size(), setup.limits.tokens_per_block, setup.shard().kv_heads.size(),
          setup.spec->head_dim, setup.kv_dtype};
}

RankMemory RankMemoryOf(const RankSetup& setup) {
  const StepShape shape{.spec = *setup.spec,
                        .shard = setup.shard(),
                        .shards = setup.plan->topology().shards(),
                        .limits = setup.limits,
                        .activations = setup.device.activations,
                        .kv_dtype = setup.kv_dtype,
                        .head_chunk_samples = setup.head_chunk_samples};
  RankMemory memory;
  memory.gpu = setup.device.gpu;
  memory.weights =
      weights::ShardBytes(*setup.spec, *setup.plan, setup.rank, setup.limits.max_model_len,
                          [&](int64_t rows, int64_t cols, DType stored) {
                            return backend::PackedBytes(setup.device, rows, cols, stored);
                          });
  memory.step = StepMemoryOf(shape, backend::WorkspaceBytes(setup.device, WorkloadOf(shape)));
  memory.kv_bytes_per_block = KvLayoutOf(setup).bytes_per_block();
  const int64_t per_block = setup.limits.tokens_per_block;
  memory.sequence_bytes =
      (setup.limits.max_model_len + per_block - 1) / per_block * memory.kv_bytes_per_block;
  if (!memory.gpu) return memory;
  const DeviceReserves reserves = ReservesOf(setup.plan->topology().world_size());
  memory.communicator_bytes = reserves.communicator_bytes;
  memory.recording_bytes = reserves.recording_bytes;
  memory.context_bytes = reserves.process_bytes;
  return memory;
}

CacheShare EmptyDeviceShare(const RankSetup& setup, const RankMemory& memory, int64_t device_bytes,
                            double utilization) {
  CacheShare share;
  share.total_bytes = device_bytes;
  share.free_bytes = device_bytes - memory.weights.total() - memory.context_bytes;
  share.weight_bytes = memory.weights.total();
  share.step = memory.step;
  share.utilization = utilization;
  share.world_size = setup.plan->topology().world_size();
  share.sequence_bytes = memory.sequence_bytes;
  share.max_model_len = setup.limits.max_model_len;
  return share;
}

}  // namespace polyreme::run
