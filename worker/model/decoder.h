// What the families of this decoder block share: weights bound to ops and group, and the scratch of
// one step.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "worker/model/layers.h"
#include "worker/model/model.h"

namespace polyreme::model {

// One layer's parts.
struct DecoderLayer {
  Norm attention_norm;
  ColumnLinear qkv;         // [T, E] -> [T, (H + 2G) D]
  RowLinear attention_out;  // [T, H D] -> [T, E]
  Norm ffn_norm;
  ColumnLinear gate_up;    // [T, E] -> [T, 2F]
  RowLinear down;          // [T, F] -> [T, E]
  ConstTensorView q_norm;  // [D], of families that have it
  ConstTensorView k_norm;
};

// A stage's layers and sizes, bound for one epoch.
struct Decoder {
  ops::Ops* ops = nullptr;
  std::vector<DecoderLayer> layers;
  ops::HeadLayout heads;
  ops::RopeTable rope;
  float scale = 0;  // of attention: head_dim^-1/2
  float epsilon = 0;
  int64_t width = 0;        // E
  int64_t ffn_columns = 0;  // F, held here

  // The norm before the layer after `layer`; nullopt at the end of the stage.
  std::optional<Norm> NormAfter(size_t layer) const {
    if (layer + 1 == layers.size()) return std::nullopt;
    return layers[layer + 1].attention_norm;
  }
};
Decoder BindDecoder(const weights::ShardWeights& weights, Tools tools);

// Temporaries of one Forward.
struct DecoderScratch {
  TensorView h;         // [T, E] what a block reads
  TensorView qkv;       // [T, (H + 2G) D]
  TensorView attended;  // [T, H D]
  TensorView gate_up;   // [T, 2F]
  TensorView gated;     // [T, F]
};
DecoderScratch MakeScratch(const Decoder& decoder, Lane& lane, int64_t num_tokens);

}  // namespace polyreme::model
