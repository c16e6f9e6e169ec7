// This rank's partition of the paged KV cache: a pool of blocks per layer, [blocks, P, G, D] for
// keys and for values. Block ids come from outside (the coordinator); block b means the same
// logical block on each worker, which holds its own heads and layers of it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "worker/ops/ops.h"

namespace polyreme::kv {

struct KvLayout {
  int64_t num_layers = 0;        // held here
  int64_t tokens_per_block = 0;  // P
  int64_t kv_heads = 0;          // G, held here
  int64_t head_dim = 0;          // D
  DType dtype = DType::kF32;
  // Bytes of one block over all layers, keys and values.
  int64_t bytes_per_block() const;
};

class KvCache {
 public:
  // ResourceExhausted with bytes asked and free.
  static absl::StatusOr<KvCache> Make(Device& device, const KvLayout& layout, int32_t num_blocks);
  const ops::LayerKv& Layer(int64_t local_layer) const {
    return layers_[static_cast<size_t>(local_layer)];
  }
  int32_t num_blocks() const { return num_blocks_; }
  int64_t bytes() const { return pool_.bytes(); }
  // Copies whole blocks in every layer, in lane order. moves_device: [num] on the device.
  void Copy(Lane& lane, ops::Ops& ops, const ops::BlockMove* moves_device, int32_t num_moves) const;

 private:
  KvCache() = default;
  Buffer pool_;
  std::vector<ops::LayerKv> layers_;
  int32_t num_blocks_ = 0;
};

}  // namespace polyreme::kv
