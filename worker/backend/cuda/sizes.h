// What host and kernels say of types and heads, without CUDA's headers: for arithmetic on sizes
// where there is no CUDA at all. C++17.
#pragma once

#include <cstdint>

namespace polyreme::cuda {

enum class Element : uint8_t { kF32, kF16, kBF16 };
constexpr int64_t SizeOf(Element element) {
  return element == Element::kF32 ? 4 : 2;
}

// As ops::HeadLayout: a fused qkv row is H query heads, then G key heads, then G value heads, of D.
struct Heads {
  int query_heads = 0;  // H
  int kv_heads = 0;     // G
  int head_dim = 0;     // D
  int64_t columns() const { return static_cast<int64_t>(query_heads + 2 * kv_heads) * head_dim; }
};

// cublasLt's workspace: what NVIDIA advises for Hopper.
constexpr int64_t kProductWorkspaceBytes = int64_t{32} << 20;

// Of the decode kernel: positions of a tile, query heads of a kv head at most, and bytes of its
// plan's parts.
constexpr int kDecodeTile = 16;
constexpr int kDecodeMaxGroup = 8;
constexpr int64_t kDecodeHeaderBytes = 16;
constexpr int64_t kDecodeShareBytes = 32;
constexpr int64_t kDecodeRowBytes = 16;
// Of FlashInfer's FA2 path: query rows of its largest tile, tokens times heads of a group.
constexpr int kFa2MaxTile = 128;
// Of the Hopper path: tokens of one head in a tile, and arrays of the plan, an int for each tile.
constexpr int kHopperTile = 128;
constexpr int kHopperArrays = 7;

}  // namespace polyreme::cuda
