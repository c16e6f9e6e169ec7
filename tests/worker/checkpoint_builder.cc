#include "tests/worker/checkpoint_builder.h"

#include <unistd.h>

#include <bit>
#include <filesystem>
#include <fstream>
#include <random>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "worker/weights/tensor_names.h"

namespace polyreme::weights {
namespace {

void AppendValue(const std::string& dtype, float value, std::string& bytes) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (dtype == "BF16") {
    const uint16_t cut = static_cast<uint16_t>(bits >> 16);
    bytes.append(reinterpret_cast<const char*>(&cut), sizeof cut);
  } else if (dtype == "F16") {
    // Normal numbers only: the tests' weights are never smaller than half can tell.
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 255) - 112;
    const uint16_t cut =
        exponent <= 0
            ? uint16_t{0}
            : static_cast<uint16_t>((bits >> 31 << 15) | static_cast<uint32_t>(exponent << 10) |
                                    (bits >> 13 & 1023));
    bytes.append(reinterpret_cast<const char*>(&cut), sizeof cut);
  } else {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
}

BuiltTensor RandomTensor(const ExpectedTensor& expected, const std::string& dtype) {
  BuiltTensor tensor{.name = expected.name, .dtype = "F32", .shape = expected.shape, .bytes = {}};
  const bool is_matrix = expected.shape.size() == 2;
  const bool is_norm = expected.name.find("norm") != std::string::npos;
  if (is_matrix) tensor.dtype = dtype;
  uint64_t seed = 14695981039346656037ULL;
  for (const char c : expected.name)
    seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  std::mt19937_64 random(seed);
  int64_t count = 1;
  for (const int64_t extent : expected.shape) count *= extent;
  for (int64_t i = 0; i < count; ++i) {
    // Uniform in [-1, 1), by hand: standard distributions differ between libraries.
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-52 - 1.0;
    const double value = is_norm ? 1.0 + 0.3 * uniform : (is_matrix ? 0.26 : 0.2) * uniform;
    AppendValue(tensor.dtype, static_cast<float>(value), tensor.bytes);
  }
  return tensor;
}

}  // namespace

std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header.size() >> (8 * i) & 255));
  bytes += header;
  bytes += data;
  return bytes;
}

std::string SafetensorsBytes(const std::vector<BuiltTensor>& tensors) {
  std::string header;
  std::string data;
  for (const BuiltTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    header += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                          header.empty() ? "{" : ",", tensor.name, tensor.dtype,
                          fmt::join(tensor.shape, ","), begin, data.size());
  }
  return SafetensorsBytes(header + "}", data);
}

std::string TinyConfig(plan::ModelSpec::Family family, const ConfigChanges& changes) {
  std::pair<const char*, const char*> names = {"LlamaForCausalLM", "llama"};
  if (family == plan::ModelSpec::Family::kQwen2) names = {"Qwen2ForCausalLM", "qwen2"};
  if (family == plan::ModelSpec::Family::kQwen3) names = {"Qwen3ForCausalLM", "qwen3"};
  Json json = *Json::Parse(fmt::format(
      R"({{"architectures": ["{}"], "model_type": "{}", "num_hidden_layers": 4, "hidden_size": 32,
           "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
           "intermediate_size": 104, "vocab_size": 300, "max_position_embeddings": 512,
           "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "float32"}})",
      names.first, names.second));
  for (const auto& [key, value] : changes) json.Set(key, value);
  return json.Dump();
}

std::vector<BuiltTensor> RandomTensors(const plan::ModelSpec& spec, const std::string& dtype) {
  std::vector<BuiltTensor> tensors;
  for (const ExpectedTensor& expected : ExpectedTensors(spec)) {
    tensors.push_back(RandomTensor(expected, dtype));
  }
  return tensors;
}

std::string FreshDirectory(const std::string& name) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / fmt::format("polyreme_{}_{}", ::getpid(), name);
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path.string();
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string WriteCheckpoint(const std::string& name, const std::string& config,
                            const std::vector<BuiltTensor>& tensors) {
  const std::string directory = FreshDirectory(name);
  WriteFile(directory + "/config.json", config);
  WriteFile(directory + "/model.safetensors", SafetensorsBytes(tensors));
  return directory;
}

}  // namespace polyreme::weights
