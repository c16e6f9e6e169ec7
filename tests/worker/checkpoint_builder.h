// Checkpoints made on the spot: small directories with seeded random weights of any shape that a
// config.json asks for.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "parallel/base/json.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::weights {

// One tensor to be written. `bytes` as they stand in the file.
struct BuiltTensor {
  std::string name;
  std::string dtype = "F32";
  std::vector<int64_t> shape;
  std::string bytes;
};

// The bytes of a .safetensors file with these tensors, one after another.
std::string SafetensorsBytes(const std::vector<BuiltTensor>& tensors);
// The same from a header as it is, right or wrong.
std::string SafetensorsBytes(std::string_view header, std::string_view data);

// config.json of a small model of each family: 4 layers, width 32, 8 query heads of 8, feed-forward
// 104. Changes replace or add keys.
using ConfigChanges = std::vector<std::pair<std::string, Json>>;
std::string TinyConfig(plan::ModelSpec::Family family, const ConfigChanges& changes = {});

// Random tensors for a config: matrices of standard deviation 0.15, norms about 1, biases about 0.
// The seed and the name decide a tensor's values. dtype: "F32", "BF16" or "F16" (of the matrices;
// F32 otherwise).
std::vector<BuiltTensor> RandomTensors(const plan::ModelSpec& spec, const std::string& dtype);

// A directory of this test's own, emptied.
std::string FreshDirectory(const std::string& name);
void WriteFile(const std::string& path, std::string_view bytes);
// config.json and model.safetensors in FreshDirectory(name).
std::string WriteCheckpoint(const std::string& name, const std::string& config,
                            const std::vector<BuiltTensor>& tensors);

}  // namespace polyreme::weights
