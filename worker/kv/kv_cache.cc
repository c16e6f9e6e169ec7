#include "worker/kv/kv_cache.h"

namespace polyreme::kv {

int64_t KvLayout::bytes_per_block() const {
  return 2 * num_layers * tokens_per_block * kv_heads * head_dim * SizeOf(dtype);
}

absl::StatusOr<KvCache> KvCache::Make(Device& device, const KvLayout& layout, int32_t num_blocks) {
  CHECK(layout.num_layers >= 0 && layout.tokens_per_block > 0 && layout.kv_heads > 0 &&
            layout.head_dim > 0 && num_blocks > 0,
        "a cache of {} layers, {} blocks", layout.num_layers, num_blocks);
  KvCache cache;
  cache.num_blocks_ = num_blocks;
  const int64_t bytes = layout.bytes_per_block() * num_blocks;
  absl::StatusOr<Buffer> pool = device.Allocate(bytes);
  if (!pool.ok()) {
    return Annotate(pool.status(), fmt::format("cache of {} blocks of {} bytes", num_blocks,
                                               layout.bytes_per_block()));
  }
  cache.pool_ = *std::move(pool);
  const Shape shape({num_blocks, layout.tokens_per_block, layout.kv_heads, layout.head_dim});
  auto* next = static_cast<std::byte*>(cache.pool_.data());
  for (int64_t i = 0; i < layout.num_layers; ++i) {
    ops::LayerKv& layer = cache.layers_.emplace_back();
    for (TensorView* part : {&layer.keys, &layer.values}) {
      *part = TensorView{next, layout.dtype, shape};
      next += part->bytes();
    }
  }
  return cache;
}

void KvCache::Copy(Lane& lane, ops::Ops& ops, const ops::BlockMove* moves_device,
                   int32_t num_moves) const {
  for (const ops::LayerKv& layer : layers_) ops.CopyBlocks(lane, layer, moves_device, num_moves);
}

}  // namespace polyreme::kv
