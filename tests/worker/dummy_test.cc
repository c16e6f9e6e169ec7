// Dummy models: the same weights on every layout, from files and without, and sane ones.
#include "worker/weights/dummy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/model_harness.h"
#include "worker/backend/backend.h"
#include "worker/weights/floats.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::weights {
namespace {

using plan::ModelSpec;
using testing::HasSubstr;

constexpr uint64_t kSeed = 11;

// A weight as floats, in plain rows.
class PlainPacker final : public WeightPacker {
 public:
  absl::StatusOr<Weight> Pack(const WeightSource& source) override {
    Weight weight;
    weight.cols = source.cols;
    std::vector<float> values;
    std::vector<std::byte> row_bytes(static_cast<size_t>(source.cols * SizeOf(source.dtype)));
    for (const WeightSource::RowBlock& block : source.blocks) {
      weight.rows += block.rows;
      for (int64_t row = 0; row < block.rows; ++row) {
        const std::byte* from = block.data + row * block.row_stride_bytes;
        if (block.data == nullptr) {
          std::fill(row_bytes.begin(), row_bytes.end(), std::byte{0});
          from = row_bytes.data();
        }
        if (block.generated.has_value()) {
          const WeightSource::Generated& g = *block.generated;
          const int64_t first = (g.first_row + row) * g.full_cols + g.first_col;
          FillDummy(g.values, source.dtype, static_cast<uint64_t>(first), source.cols,
                    row_bytes.data());
        }
        AppendAsFloats(source.dtype, from, source.cols, values);
      }
    }
    ASSIGN_OR_RETURN(weight.bytes, PackVector(values));
    return weight;
  }
  absl::StatusOr<Buffer> PackVector(absl::Span<const float> values) override {
    const size_t bytes = values.size() * sizeof(float);
    void* copy = ::operator new(bytes);
    if (bytes > 0) std::memcpy(copy, values.data(), bytes);
    return Buffer(copy, static_cast<int64_t>(bytes), [](void* data) { ::operator delete(data); });
  }
  void ReleaseStaging() override { ++num_releases; }

  int num_releases = 0;
};

absl::Span<const float> FloatsOf(const Buffer& buffer) {
  return {static_cast<const float*>(buffer.data()), static_cast<size_t>(buffer.bytes() / 4)};
}

class DummyModels : public testing::Test {
 protected:
  void SetUp() override {
    model_ = FreshDirectory("dummy_model");
    saved_ = FreshDirectory("dummy_saved");
  }
  void TearDown() override {
    std::filesystem::remove_all(model_);
    std::filesystem::remove_all(saved_);
  }
  void Describe(ModelSpec::Family family, const ConfigChanges& changes) {
    WriteFile(model_ + "/config.json", TinyConfig(family, changes));
    spec_ = *plan::ReadModelSpec(model_);
  }
  std::unique_ptr<TensorSource> Open(LoadFormat format, uint64_t seed = kSeed) {
    const std::string& directory = format == LoadFormat::kDummy ? model_ : saved_;
    auto source = OpenTensorSource(directory, spec_, format, seed);
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }
  ShardWeights Load(const TensorSource& source, int32_t stages, int32_t shards, int32_t rank,
                    WeightPacker& packer) {
    const plan::Topology topology = *plan::Topology::Make(stages, shards);
    const plan::ShardPlan plan = *plan::ShardPlan::Make(spec_, topology, {});
    auto weights =
        LoadShard(source, spec_, plan,
                  {.rank = Rank{rank}, .positions = 16, .progress = {}, .cancelled = {}}, packer);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }
  absl::Status Save(const SaveOptions& options) {
    return SaveDummyCheckpoint(spec_, model_, saved_, options);
  }
  std::vector<std::string> SavedFiles() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(saved_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string model_, saved_;
  ModelSpec spec_;
  PlainPacker packer_;
};

// The value of the whole model's tensor.
float WholeValue(const TensorSource& source, const std::string& name, int64_t row, int64_t col) {
  PlainPacker packer;
  WeightSource one;
  one.cols = 1;
  one.dtype = source.TypeOf(name);
  one.blocks.push_back(source.BlockOf(name, {row, row + 1}, {col, col + 1}));
  return FloatsOf(packer.Pack(one)->bytes)[0];
}

// Rows [0, rows) of a weight at `first_row` are the tensor's [tensor_row ..), its columns too.
void ExpectSlice(const TensorSource& source, const Weight& weight, int64_t first_row, int64_t rows,
                 const std::string& name, int64_t tensor_row, int64_t tensor_col) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < weight.cols; ++col) {
      ASSERT_EQ(FloatsOf(weight.bytes)[static_cast<size_t>((first_row + row) * weight.cols + col)],
                WholeValue(source, name, tensor_row + row, tensor_col + col))
          << name << " " << row << " " << col;
    }
  }
}

TEST_F(DummyModels, EveryLayoutHoldsSlicesOfOneModel) {
  Describe(ModelSpec::Family::kQwen3, {{"attention_bias", true}, {"torch_dtype", "bfloat16"}});
  const auto source = Open(LoadFormat::kDummy);
  const std::pair<int32_t, int32_t> layouts[] = {{1, 1}, {1, 2}, {1, 4}, {2, 1}};
  int num_loads = 0;
  for (const auto& [stages, shards] : layouts) {
    for (int32_t rank = 0; rank < stages * shards; ++rank) {
      const ShardWeights weights = Load(*source, stages, shards, rank, packer_);
      EXPECT_EQ(packer_.num_releases, ++num_loads);
      const plan::Shard& shard = weights.shard;
      const int64_t layer = shard.layers.begin + 1;
      const LayerWeights& w = weights.layers[1];
      const auto name = [&](std::string_view part) { return LayerTensor(layer, part); };
      const int64_t q = shard.query_heads.size() * 8, kv = shard.kv_heads.size() * 8;
      ExpectSlice(*source, w.qkv, 0, q, name("self_attn.q_proj.weight"),
                  shard.query_heads.begin * 8, 0);
      ExpectSlice(*source, w.qkv, q + kv, kv, name("self_attn.v_proj.weight"),
                  shard.kv_heads.begin * 8, 0);
      ExpectSlice(*source, w.attention_out, 0, 32, name("self_attn.o_proj.weight"), 0,
                  shard.query_heads.begin * 8);
      ExpectSlice(*source, w.gate_up, shard.ffn_columns.size(), shard.ffn_columns.size(),
                  name("mlp.up_proj.weight"), shard.ffn_columns.begin, 0);
      ExpectSlice(*source, w.down, 0, 32, name("mlp.down_proj.weight"), 0, shard.ffn_columns.begin);
      std::vector<float> bias;
      source->AppendFloats(name("self_attn.q_proj.bias"),
                           {shard.query_heads.begin * 8, shard.query_heads.end * 8}, bias);
      for (size_t i = 0; i < bias.size(); ++i) {
        EXPECT_EQ(FloatsOf(w.qkv_bias.bytes)[i], bias[i]) << i;
      }
      if (!shard.has_head) continue;
      const int64_t real = std::min<int64_t>(shard.vocab_rows.end, 300) - shard.vocab_rows.begin;
      ExpectSlice(*source, weights.head(), 0, std::max<int64_t>(0, real), "lm_head.weight",
                  shard.vocab_rows.begin, 0);
      for (int64_t i = std::max<int64_t>(0, real) * 32; i < weights.head().rows * 32; ++i) {
        ASSERT_EQ(FloatsOf(weights.head().bytes)[static_cast<size_t>(i)], 0.0f) << "padding";
      }
    }
  }
}

struct Moments {
  double mean = 0, std = 0;
  int64_t zeros = 0;
};

Moments MomentsOf(const ModelSpec& spec, const ExpectedTensor& tensor) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) count *= extent;
  std::vector<std::byte> bytes(static_cast<size_t>(count * SizeOf(spec.dtype)));
  FillDummy(DummyValuesOf(spec, tensor, kSeed), spec.dtype, 0, count, bytes.data());
  std::vector<float> values;
  AppendAsFloats(spec.dtype, bytes.data(), count, values);
  Moments moments;
  double squares = 0;
  for (const float value : values) {
    moments.mean += value / static_cast<double>(count);
    squares += double{value} * value / static_cast<double>(count);
    if (value == 0.0f) ++moments.zeros;
  }
  moments.std = std::sqrt(squares - moments.mean * moments.mean);
  return moments;
}

TEST_F(DummyModels, ScalesAreAsSaidAndNothingIsZero) {
  for (const char* dtype : {"float32", "float16", "bfloat16"}) {
    Describe(ModelSpec::Family::kLlama, {{"num_hidden_layers", 8},
                                         {"hidden_size", 256},
                                         {"head_dim", 64},
                                         {"intermediate_size", 512},
                                         {"vocab_size", 4096},
                                         {"attention_bias", true},
                                         {"torch_dtype", dtype}});
    const auto expect = [&](const char* name, std::vector<int64_t> shape, double mean, double std) {
      const Moments moments = MomentsOf(spec_, {name, shape});
      EXPECT_NEAR(moments.mean, mean, 0.02 * std + 0.003) << name << " " << dtype;
      EXPECT_NEAR(moments.std, std, 0.05 * std) << name << " " << dtype;
      EXPECT_EQ(moments.zeros, 0) << name << " " << dtype;
    };
    expect("model.layers.3.self_attn.q_proj.weight", {512, 256}, 0, 1.0 / 16);
    expect("model.layers.3.self_attn.o_proj.weight", {256, 512}, 0, 1 / std::sqrt(512.0 * 16));
    expect("model.layers.3.mlp.down_proj.weight", {256, 512}, 0, 1 / std::sqrt(512.0 * 16));
    expect("model.layers.3.mlp.up_proj.weight", {512, 256}, 0, 1.0 / 16);
    expect("model.embed_tokens.weight", {4096, 256}, 0, 1.0);
    expect("lm_head.weight", {4096, 256}, 0, 2.0 / 16);
    expect("model.layers.0.input_layernorm.weight", {4096}, 1, 0.1 / std::sqrt(3.0));
    expect("model.layers.0.self_attn.q_proj.bias", {4096}, 0, 0.02 / std::sqrt(3.0));
    spec_.tied_head = true;
    expect("model.embed_tokens.weight", {4096, 256}, 0, 2.0 / 16);
  }
}

// A value may not change between versions: saved checkpoints and goldens rest on it.
TEST_F(DummyModels, ValuesAreForEver) {
  const DummyValues values{.key = DummyKey("a", 1, 7), .scale = 1.0f, .offset = 0.0f};
  // As Python's integers have it.
  EXPECT_EQ(values.key, 0x4eea661677fda2a8ULL);
  EXPECT_EQ(DummyValue(values, 0), -3397677.0f / (1 << 23));
  EXPECT_EQ(DummyValue(values, uint64_t{1} << 40), 6305015.0f / (1 << 23));
  EXPECT_NE(DummyKey("a", 1, 8), values.key);
  EXPECT_NE(DummyKey("b", 1, 7), values.key);
}

TEST_F(DummyModels, FingerprintIsOfConfigAndSeed) {
  Describe(ModelSpec::Family::kLlama, {});
  const std::string first = Open(LoadFormat::kDummy)->fingerprint();
  EXPECT_EQ(first.size(), 16u);
  EXPECT_EQ(Open(LoadFormat::kDummy)->fingerprint(), first);
  EXPECT_NE(Open(LoadFormat::kDummy, kSeed + 1)->fingerprint(), first);
  Describe(ModelSpec::Family::kLlama, {{"rms_norm_eps", 1e-5}});
  EXPECT_NE(Open(LoadFormat::kDummy)->fingerprint(), first);
  EXPECT_TRUE(
      absl::IsNotFound(OpenTensorSource(saved_, spec_, LoadFormat::kDummy, kSeed).status()));
}

// What the CPU packs of the files is what it packs without them, on any rank.
TEST_F(DummyModels, SavedAndLoadedIsTheSame) {
  const auto backend = *backend::MakeBackend("cpu", {.num_threads = 2});
  for (const char* dtype : {"bfloat16", "float16", "float32"}) {
    Describe(ModelSpec::Family::kQwen3, {{"attention_bias", true}, {"torch_dtype", dtype}});
    std::filesystem::remove_all(saved_);
    ASSERT_TRUE(
        Save({.seed = kSeed, .num_threads = 3, .max_file_bytes = 40'000, .progress = {}}).ok());
    const auto files = Open(LoadFormat::kSafetensors);
    const auto made = Open(LoadFormat::kDummy);
    for (int32_t rank = 0; rank < 4; ++rank) {
      const ShardWeights a = Load(*files, 2, 2, rank, backend->packer());
      const ShardWeights b = Load(*made, 2, 2, rank, backend->packer());
      EXPECT_EQ(a.checkpoint_bytes_read, b.checkpoint_bytes_read);
      const auto expect_same = [&](const Buffer& x, const Buffer& y, const char* what) {
        ASSERT_EQ(x.bytes(), y.bytes()) << what;
        EXPECT_EQ(std::memcmp(x.data(), y.data(), static_cast<size_t>(x.bytes())), 0) << what;
      };
      ASSERT_EQ(a.layers.size(), 2u);
      for (size_t i = 0; i < 2; ++i) {
        expect_same(a.layers[i].qkv.bytes, b.layers[i].qkv.bytes, "qkv");
        expect_same(a.layers[i].attention_out.bytes, b.layers[i].attention_out.bytes, "o");
        expect_same(a.layers[i].gate_up.bytes, b.layers[i].gate_up.bytes, "gate_up");
        expect_same(a.layers[i].down.bytes, b.layers[i].down.bytes, "down");
        expect_same(a.layers[i].qkv_bias.bytes, b.layers[i].qkv_bias.bytes, "bias");
        expect_same(a.layers[i].q_norm.bytes, b.layers[i].q_norm.bytes, "q_norm");
        expect_same(a.layers[i].ffn_norm.bytes, b.layers[i].ffn_norm.bytes, "ffn_norm");
      }
      if (a.own_head.has_value()) expect_same(a.own_head->bytes, b.own_head->bytes, "head");
      if (a.embedding.has_value()) expect_same(a.embedding->bytes, b.embedding->bytes, "embedding");
    }
  }
}

TEST_F(DummyModels, SavedAsTransformersHasIt) {
  Describe(ModelSpec::Family::kQwen2, {{"tie_word_embeddings", true}, {"torch_dtype", "bfloat16"}});
  WriteFile(model_ + "/tokenizer.json", "{\"a\": 1}");
  WriteFile(model_ + "/generation_config.json", "{}");
  std::filesystem::create_directories(model_ + "/additional_chat_templates");
  WriteFile(model_ + "/additional_chat_templates/tool_use.jinja", "tools");
  WriteFile(model_ + "/notes.txt", "not to be copied");
  std::vector<std::pair<int64_t, int64_t>> calls;
  const auto progress = [&](int64_t done, int64_t total) { calls.emplace_back(done, total); };
  const SaveOptions options{
      .seed = kSeed, .num_threads = 2, .max_file_bytes = 60'000, .progress = progress};
  ASSERT_TRUE(Save(options).ok());
  EXPECT_THAT(
      SavedFiles(),
      testing::ElementsAre("additional_chat_templates", "config.json", "generation_config.json",
                           "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                           "model-00003-of-00003.safetensors", "model.safetensors.index.json",
                           "tokenizer.json"));
  EXPECT_TRUE(std::filesystem::exists(saved_ + "/additional_chat_templates/tool_use.jinja"));
  ASSERT_FALSE(calls.empty());
  EXPECT_EQ(calls.back().first, calls.back().second);

  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(saved_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(calls.back().second, checkpoint->data_bytes());
  EXPECT_EQ(checkpoint->Find("lm_head.weight"), nullptr) << "tied";
  EXPECT_TRUE(MakeCheckpointSource(*checkpoint)->Check(spec_).ok());
  const Checkpoint::Tensor* tensor = checkpoint->Find("model.layers.2.mlp.down_proj.weight");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->entry->dtype, "BF16");
  EXPECT_THAT(tensor->file->header(), HasSubstr(R"("__metadata__":{"format":"pt"})"));
  ASSERT_TRUE(Save(options).ok()) << "its own files may be replaced";
}

TEST_F(DummyModels, SavingSaysWhatIsInTheWay) {
  Describe(ModelSpec::Family::kLlama, {});
  EXPECT_TRUE(absl::IsAlreadyExists(SaveDummyCheckpoint(spec_, model_, model_, {})));
  WriteFile(saved_ + "/model.safetensors", "mine");
  EXPECT_THAT(Message(Save({})), HasSubstr("without another checkpoint"));
  std::filesystem::remove(saved_ + "/model.safetensors");
  WriteFile(model_ + "/file", "");
  EXPECT_THAT(Message(SaveDummyCheckpoint(spec_, model_, model_ + "/file", {})), HasSubstr("file"));
  EXPECT_THAT(SavedFiles(), testing::IsEmpty()) << "nothing is left behind";
}

TEST_F(DummyModels, AFullDiskIsNamed) {
  Describe(ModelSpec::Family::kLlama,
           {{"vocab_size", 1 << 20}, {"hidden_size", 16384}, {"torch_dtype", "bfloat16"}});
  spec_.num_layers = 4096;  // some terabytes: more than is free anywhere
  spec_.ffn_width = 1 << 20;
  const absl::Status status = Save({});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("bytes are needed"));
  EXPECT_THAT(SavedFiles(), testing::IsEmpty());
}

// A write that fails while several threads write, by way of a limit on the length of files.
TEST_F(DummyModels, AFailedWriteLeavesNothing) {
  Describe(ModelSpec::Family::kLlama, {{"vocab_size", 20'000}});
  struct rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tight = {.rlim_cur = 1'000'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const absl::Status status = Save({.seed = kSeed, .num_threads = 3, .progress = {}});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("model-00001-of-00001.safetensors.partial: cannot be"));
  EXPECT_THAT(SavedFiles(), testing::IsEmpty());
}

// Activations stay sane through the depth of a large model, whatever the family.
TEST_F(DummyModels, LogitsOfEightyLayersAreSane) {
  for (const bool tied : {false, true}) {
    Describe(tied ? ModelSpec::Family::kQwen3 : ModelSpec::Family::kLlama,
             {{"num_hidden_layers", 80},
              {"hidden_size", 128},
              {"head_dim", 16},
              {"intermediate_size", 256},
              {"vocab_size", 1000},
              {"tie_word_embeddings", tied},
              {"torch_dtype", "bfloat16"}});
    std::filesystem::remove_all(saved_);
    ASSERT_TRUE(Save({.seed = kSeed, .num_threads = 2, .progress = {}}).ok());
    const std::vector<model::HarnessStep> steps =
        model::ForcedSteps({17, 400, 3, 999, 512, 77, 5, 640}, {11, 12, 13, 500, 600, 700}, 8);
    const auto logits = model::RunModel(saved_, {.positions = 64}, steps);
    ASSERT_TRUE(logits.ok()) << logits.status();
    double squares = 0;
    int64_t count = 0;
    for (const auto& step : *logits) {
      for (const std::vector<float>& row : step) {
        for (const float value : row) {
          ASSERT_TRUE(std::isfinite(value));
          squares += double{value} * value;
          ++count;
        }
      }
    }
    const double std = std::sqrt(squares / static_cast<double>(count));
    RecordProperty(tied ? "tied_std" : "std", fmt::format("{:.2f}", std));
    EXPECT_GT(std, 1.5) << (tied ? "tied" : "untied");
    EXPECT_LT(std, 2.5) << (tied ? "tied" : "untied");
  }
}

}  // namespace
}  // namespace polyreme::weights
