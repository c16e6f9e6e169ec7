// Loads one rank's part of a model: only its slices, each tensor of the checkpoint accounted for.
//
// Every rank checks the names, shapes and types of the whole checkpoint, whatever it holds itself,
// so that a bad one is refused by all. Tensor names are Hugging Face's:
// model.layers.3.self_attn.q_proj.weight and so on; all families share them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/plan/shard_plan.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/tensor_source.h"
#include "worker/weights/weight.h"

namespace polyreme::weights {

// A float32 vector on the device.
struct Vector {
  Buffer bytes;
  int64_t size = 0;
  bool empty() const { return size == 0; }
  ConstTensorView view() const { return {bytes.data(), DType::kF32, Shape{size}}; }
};

// E width, D head width, H / G query / key-value heads held here, F feed-forward columns held here.
struct LayerWeights {
  Weight qkv;                 // [(H + 2G) D, E]: rows of q, then k, then v
  Weight attention_out;       // [E, H D], summed over shards
  Weight gate_up;             // [2F, E]: rows of gate, then up
  Weight down;                // [E, F], summed over shards
  Vector attention_norm;      // [E]
  Vector ffn_norm;            // [E]
  Vector q_norm, k_norm;      // [D] each, or empty
  Vector qkv_bias;            // [(H + 2G) D], or empty
  Vector attention_out_bias;  // [E], or empty; to be added once, after the sum
  Vector gate_up_bias;        // [2F], or empty
  Vector down_bias;           // [E], or empty; once, after the sum
};

// Bytes on the device, by kind.
struct WeightBytes {
  int64_t attention = 0;
  int64_t ffn = 0;
  int64_t tables = 0;   // embedding and head
  int64_t vectors = 0;  // norms, biases, rope
  int64_t total() const { return attention + ffn + tables + vectors; }
  friend bool operator==(const WeightBytes&, const WeightBytes&) = default;
};

struct ShardWeights {
  plan::ModelSpec spec;
  plan::Shard shard;
  std::vector<LayerWeights> layers;  // of shard.layers
  // [V, E]; V = shard.vocab_rows, padded with zeros. The embedding is on the first stage; a head of
  // its own on the last, unless it is tied and the embedding is there too.
  std::optional<Weight> embedding;
  std::optional<Weight> own_head;
  Vector final_norm;  // [E] on the last stage
  Vector rope;        // [positions, D]: plan::RopeTable
  int64_t rope_positions = 0;
  int64_t checkpoint_bytes_read = 0;

  // The matrix of the head; only on the last stage.
  const Weight& head() const { return own_head.has_value() ? *own_head : *embedding; }
  WeightBytes bytes() const;
  int64_t total_bytes() const { return bytes().total(); }
};

struct LoadOptions {
  Rank rank;
  int64_t positions = 0;  // rows of the rope table: the longest sequence to be served
  // Called after each tensor with bytes read so far and in all (Shard::weight_bytes), and at the
  // end with both equal; may be empty. Loader's thread.
  std::function<void(int64_t done, int64_t total)> progress;
  // Asked before each layer; true ends the load with Cancelled. May be empty.
  std::function<bool()> cancelled;
};

// Blocking. InvalidArgument (or DataLoss) names file and tensor: unknown, missing, mis-shaped,
// mistyped.
absl::StatusOr<ShardWeights> LoadShard(const TensorSource& source, const plan::ModelSpec& spec,
                                       const plan::ShardPlan& plan, const LoadOptions& options,
                                       WeightPacker& packer);
// What LoadShard will allocate, from sizes alone: the same walk over the model's parts, with a
// counter in the packer's place. packed_bytes: of a weight [rows, cols] stored in the model's type,
// as the backend packs it. Microseconds.
WeightBytes ShardBytes(
    const plan::ModelSpec& spec, const plan::ShardPlan& plan, Rank rank, int64_t positions,
    absl::FunctionRef<int64_t(int64_t rows, int64_t cols, DType stored)> packed_bytes);
// From a checkpoint's tensors.
absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint, const plan::ModelSpec& spec,
                                       const plan::ShardPlan& plan, const LoadOptions& options,
                                       WeightPacker& packer);

}  // namespace polyreme::weights
