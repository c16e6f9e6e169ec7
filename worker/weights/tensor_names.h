// The tensors that a model's checkpoint must have: Hugging Face's names and their shapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/plan/model_spec.h"

namespace polyreme::weights {

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kHeadName = "lm_head.weight";

// "model.layers.3." + part
std::string LayerTensor(int64_t layer, std::string_view part);

// Of the whole model, without the head if it is tied.
std::vector<ExpectedTensor> ExpectedTensors(const plan::ModelSpec& spec);

// Whether a checkpoint may have this tensor though nothing reads it: tables that older exports
// wrote out, and the copy of the embedding that some write for a tied head.
bool IsIgnorable(std::string_view name, const plan::ModelSpec& spec);

}  // namespace polyreme::weights
