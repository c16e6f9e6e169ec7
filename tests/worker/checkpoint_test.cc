// A directory of files, and what one rank takes from it.
#include "worker/weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/worker/checkpoint_builder.h"
#include "worker/weights/floats.h"
#include "worker/weights/shard_loader.h"
#include "worker/weights/tensor_names.h"

namespace polyreme::weights {
namespace {

using plan::ModelSpec;
using testing::HasSubstr;

// Keeps a weight as plain rows in the host's memory, so that a test can look at them.
class PlainPacker final : public WeightPacker {
 public:
  absl::StatusOr<Weight> Pack(const WeightSource& source) override {
    Weight weight;
    weight.cols = source.cols;
    weight.dtype = source.dtype;
    weight.segment_ends = source.segment_ends;
    if (weight.segment_ends.empty()) weight.segment_ends = {source.cols};
    std::string bytes;
    const int64_t row_bytes = source.cols * SizeOf(source.dtype);
    for (const WeightSource::RowBlock& block : source.blocks) {
      weight.rows += block.rows;
      for (int64_t row = 0; row < block.rows; ++row) {
        const std::byte* from = block.data + row * block.row_stride_bytes;
        if (block.data == nullptr) {
          bytes.append(static_cast<size_t>(row_bytes), '\0');
        } else {
          bytes.append(reinterpret_cast<const char*>(from), static_cast<size_t>(row_bytes));
        }
      }
    }
    weight.bytes = Keep(bytes.data(), static_cast<int64_t>(bytes.size()));
    return weight;
  }
  absl::StatusOr<Buffer> PackVector(absl::Span<const float> values) override {
    return Keep(values.data(), static_cast<int64_t>(values.size() * sizeof(float)));
  }

 private:
  static Buffer Keep(const void* from, int64_t bytes) {
    void* copy = ::operator new(static_cast<size_t>(bytes));
    if (bytes > 0) std::memcpy(copy, from, static_cast<size_t>(bytes));
    return Buffer(copy, bytes, [](void* data) { ::operator delete(data); });
  }
};

const float* FloatsOf(const Weight& weight) {
  return static_cast<const float*>(weight.bytes.data());
}

// [rows, cols] of a tensor as it was built.
float ValueOf(const std::vector<BuiltTensor>& tensors, const std::string& name, int64_t row,
              int64_t col) {
  for (const BuiltTensor& tensor : tensors) {
    if (tensor.name != name) continue;
    const int64_t cols = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    float value;
    std::memcpy(&value, tensor.bytes.data() + (row * cols + col) * 4, sizeof value);
    return value;
  }
  ADD_FAILURE() << name;
  return 0;
}

class Checkpoints : public testing::Test {
 protected:
  void SetUp() override {
    config_ = TinyConfig(ModelSpec::Family::kQwen3, {{"attention_bias", true}});
    spec_ = *plan::ParseModelSpec(config_);
    tensors_ = RandomTensors(spec_, "F32");
    directory_ = FreshDirectory("checkpoint");
    WriteFile(directory_ + "/config.json", config_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void WriteSingle(const std::vector<BuiltTensor>& tensors) {
    WriteFile(directory_ + "/model.safetensors", SafetensorsBytes(tensors));
  }
  // Tensors dealt to two files, and an index of where they are.
  void WriteSplit() {
    std::vector<BuiltTensor> parts[2];
    Json map = Json::MakeObject();
    for (size_t i = 0; i < tensors_.size(); ++i) {
      parts[i % 2].push_back(tensors_[i]);
      map.Set(tensors_[i].name, i % 2 == 0 ? "one.safetensors" : "two.safetensors");
    }
    WriteFile(directory_ + "/one.safetensors", SafetensorsBytes(parts[0]));
    WriteFile(directory_ + "/two.safetensors", SafetensorsBytes(parts[1]));
    WriteIndex(std::move(map));
  }
  void WriteIndex(Json map) {
    Json index = Json::MakeObject();
    index.Set("weight_map", std::move(map));
    WriteFile(directory_ + "/model.safetensors.index.json", index.Dump());
  }
  std::string OpenError() {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory_);
    EXPECT_FALSE(checkpoint.ok());
    return Message(checkpoint.status());
  }
  // What loading the given tensors says.
  std::string LoadError(const std::vector<BuiltTensor>& tensors) {
    WriteSingle(tensors);
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory_);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    const absl::StatusOr<ShardWeights> weights = Load(*checkpoint, 1, 1, 0);
    EXPECT_FALSE(weights.ok());
    return Message(weights.status());
  }
  absl::StatusOr<ShardWeights> Load(const Checkpoint& checkpoint, int32_t stages, int32_t shards,
                                    int32_t rank) {
    const plan::Topology topology = *plan::Topology::Make(stages, shards);
    const plan::ShardPlan plan = *plan::ShardPlan::Make(spec_, topology, {});
    return LoadShard(
        checkpoint, spec_, plan,
        {.rank = Rank{rank}, .positions = 16, .progress = progress_, .cancelled = cancelled_},
        packer_);
  }
  BuiltTensor& Find(std::vector<BuiltTensor>& tensors, const std::string& name) {
    for (BuiltTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return tensors[0];
  }

  std::string config_;
  ModelSpec spec_;
  std::vector<BuiltTensor> tensors_;
  std::string directory_;
  PlainPacker packer_;
  std::function<void(int64_t, int64_t)> progress_;
  std::function<bool()> cancelled_;
};

TEST_F(Checkpoints, OneFileAndSeveralHoldTheSame) {
  WriteSplit();
  const absl::StatusOr<Checkpoint> split = Checkpoint::Open(directory_);
  ASSERT_TRUE(split.ok()) << split.status();
  WriteSingle(tensors_);
  const absl::StatusOr<Checkpoint> single = Checkpoint::Open(directory_);
  ASSERT_TRUE(single.ok()) << single.status();
  ASSERT_EQ(split->tensors().size(), single->tensors().size());
  for (const Checkpoint::Tensor& tensor : split->tensors()) {
    const Checkpoint::Tensor* twin = single->Find(tensor.entry->name);
    ASSERT_NE(twin, nullptr);
    EXPECT_EQ(std::memcmp(tensor.data(), twin->data(), static_cast<size_t>(tensor.entry->bytes())),
              0);
  }
  EXPECT_EQ(single->Find("no.such.tensor"), nullptr);
}

TEST_F(Checkpoints, IndexAndFilesMustAgree) {
  EXPECT_THAT(OpenError(), HasSubstr("expected model.safetensors or"));
  WriteSplit();
  ASSERT_TRUE(Checkpoint::Open(directory_).ok());
  Json map = Json::MakeObject();
  map.Set("a", "../one.safetensors");
  WriteIndex(map);
  EXPECT_THAT(OpenError(), HasSubstr("a: expected a file of this directory"));
  map.Set("a", "one.safetensors");
  WriteIndex(map);
  EXPECT_THAT(OpenError(), HasSubstr("the index does not name it"));
  map.Set("a", "three.safetensors");
  WriteIndex(map);
  EXPECT_THAT(OpenError(), HasSubstr("three.safetensors: no such file"));
  WriteIndex(Json::MakeObject());
  EXPECT_THAT(OpenError(), HasSubstr("weight_map"));

  WriteSplit();
  std::vector<BuiltTensor> all = tensors_;
  Json names = Json::MakeObject();
  for (size_t i = 0; i < all.size(); ++i) {
    names.Set(all[i].name, i % 2 == 0 ? "one.safetensors" : "two.safetensors");
  }
  Json swapped = names;
  swapped.Set(all[0].name, "two.safetensors");
  WriteIndex(swapped);
  EXPECT_THAT(OpenError(), HasSubstr("the index says it is in two.safetensors"));
  Json more = names;
  more.Set("ghost", "two.safetensors");
  WriteIndex(more);
  EXPECT_THAT(OpenError(), HasSubstr("two.safetensors: ghost: the index names it"));
}

TEST_F(Checkpoints, FingerprintTellsCheckpointsApartAndCopiesNot) {
  WriteSingle(tensors_);
  const std::string first = Checkpoint::Open(directory_)->fingerprint();
  const std::string copy = FreshDirectory("copy");
  std::filesystem::copy(directory_, copy);
  EXPECT_EQ(Checkpoint::Open(copy)->fingerprint(), first);
  std::filesystem::remove_all(copy);

  std::vector<BuiltTensor> tuned = tensors_;
  tuned.back().bytes.back() ^= 1;
  WriteSingle(tuned);
  EXPECT_NE(Checkpoint::Open(directory_)->fingerprint(), first) << "same header, other values";
  WriteSingle(tensors_);
  EXPECT_EQ(Checkpoint::Open(directory_)->fingerprint(), first);
  WriteFile(directory_ + "/config.json", config_ + " ");
  EXPECT_NE(Checkpoint::Open(directory_)->fingerprint(), first);
}

TEST_F(Checkpoints, EachTensorIsAccountedFor) {
  std::vector<BuiltTensor> tensors = tensors_;
  tensors.push_back({.name = "model.gate_projections.0.weight", .shape = {0}, .bytes = {}});
  EXPECT_THAT(LoadError(tensors),
              HasSubstr("model.gate_projections.0.weight: this tensor is not part of"));

  tensors = tensors_;
  std::erase_if(tensors,
                [](const BuiltTensor& t) { return t.name == "model.layers.3.mlp.up_proj.weight"; });
  EXPECT_THAT(LoadError(tensors),
              HasSubstr("model.layers.3.mlp.up_proj.weight: expected this tensor"));

  tensors = tensors_;
  std::swap(Find(tensors, "model.layers.1.mlp.down_proj.weight").shape[0],
            Find(tensors, "model.layers.1.mlp.down_proj.weight").shape[1]);
  EXPECT_THAT(LoadError(tensors),
              HasSubstr("model.safetensors: model.layers.1.mlp.down_proj.weight: expected shape "
                        "[32, 104], got [104, 32]"));

  tensors = tensors_;
  Find(tensors, "model.norm.weight").dtype = "I32";
  EXPECT_THAT(LoadError(tensors),
              HasSubstr("model.norm.weight: expected F32, F16 or BF16, got I32"));

  tensors = tensors_;
  BuiltTensor& k = Find(tensors, "model.layers.0.self_attn.k_proj.weight");
  k.dtype = "F16";
  k.bytes.resize(k.bytes.size() / 2);
  EXPECT_THAT(LoadError(tensors),
              HasSubstr("model.layers.0.self_attn.k_proj.weight: expected F32"));
}

TEST_F(Checkpoints, WhatNothingReadsMayBeThere) {
  std::vector<BuiltTensor> tensors = tensors_;
  tensors.push_back(
      {.name = "model.layers.0.self_attn.rotary_emb.inv_freq", .shape = {0}, .bytes = {}});
  WriteSingle(tensors);
  EXPECT_TRUE(Load(*Checkpoint::Open(directory_), 1, 1, 0).ok());
  spec_.tied_head = true;  // lm_head.weight is then a copy that is not read
  const absl::StatusOr<ShardWeights> tied = Load(*Checkpoint::Open(directory_), 1, 1, 0);
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_FALSE(tied->own_head.has_value());
}

TEST_F(Checkpoints, SlicesAreThoseOfThePlan) {
  WriteSingle(tensors_);
  const Checkpoint checkpoint = *Checkpoint::Open(directory_);
  const absl::StatusOr<ShardWeights> loaded = Load(checkpoint, 2, 4, 6);  // stage 1, shard 2
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const plan::Shard& shard = loaded->shard;
  EXPECT_EQ(shard.layers, (Range{2, 4}));
  EXPECT_EQ(shard.query_heads, (Range{4, 6}));
  EXPECT_EQ(shard.kv_heads, (Range{1, 2}));
  ASSERT_EQ(loaded->layers.size(), 2u);
  const LayerWeights& w = loaded->layers[1];
  const std::string layer = "model.layers.3.";

  ASSERT_EQ(w.qkv.rows, (2 + 1 + 1) * 8);
  EXPECT_EQ(FloatsOf(w.qkv)[0], ValueOf(tensors_, layer + "self_attn.q_proj.weight", 32, 0));
  EXPECT_EQ(FloatsOf(w.qkv)[16 * 32 + 5],
            ValueOf(tensors_, layer + "self_attn.k_proj.weight", 8, 5));
  EXPECT_EQ(FloatsOf(w.qkv)[24 * 32 + 7],
            ValueOf(tensors_, layer + "self_attn.v_proj.weight", 8, 7));
  const float* bias = static_cast<const float*>(w.qkv_bias.bytes.data());
  EXPECT_EQ(bias[17], ValueOf(tensors_, layer + "self_attn.k_proj.bias", 9, 0));

  ASSERT_EQ(w.down.cols, 26);
  EXPECT_EQ(FloatsOf(w.down)[3 * 26 + 4],
            ValueOf(tensors_, layer + "mlp.down_proj.weight", 3, 52 + 4));
  EXPECT_THAT(w.down.segment_ends, testing::ElementsAre(13, 26));
  ASSERT_EQ(w.gate_up.rows, 52);
  EXPECT_EQ(FloatsOf(w.gate_up)[26 * 32], ValueOf(tensors_, layer + "mlp.up_proj.weight", 52, 0));
  EXPECT_EQ(w.attention_out.cols, 16);
  EXPECT_EQ(FloatsOf(w.attention_out)[16],
            ValueOf(tensors_, layer + "self_attn.o_proj.weight", 1, 32));
  EXPECT_EQ(w.q_norm.size, 8);

  EXPECT_FALSE(loaded->embedding.has_value());
  ASSERT_TRUE(loaded->own_head.has_value());
  ASSERT_EQ(loaded->head().rows, 128);  // 300 rows padded to 512
  EXPECT_EQ(FloatsOf(loaded->head())[0], ValueOf(tensors_, "lm_head.weight", 256, 0));
  EXPECT_EQ(FloatsOf(loaded->head())[44 * 32], 0.0f) << "row 300 is padding";
}

// Nothing but the slices is read: all ranks together read each sharded byte once.
TEST_F(Checkpoints, RanksTogetherReadEachShardedByteOnce) {
  WriteSingle(tensors_);
  const Checkpoint checkpoint = *Checkpoint::Open(directory_);
  int64_t replicated = 4 * 4 * (2 * 32 + 2 * 8 + 32);  // norms and o's bias of each layer, in bytes
  const int64_t whole = Load(checkpoint, 1, 1, 0)->checkpoint_bytes_read;
  EXPECT_EQ(whole, checkpoint.data_bytes());
  int64_t sum = 0;
  for (int32_t rank = 0; rank < 4; ++rank)
    sum += Load(checkpoint, 2, 2, rank)->checkpoint_bytes_read;
  EXPECT_EQ(sum, whole + replicated + 4 * 32);  // final norm
}

TEST_F(Checkpoints, ProgressGrowsAndEndsAtTheTotal) {
  WriteSingle(tensors_);
  std::vector<std::pair<int64_t, int64_t>> calls;
  progress_ = [&](int64_t done, int64_t total) { calls.emplace_back(done, total); };
  ASSERT_TRUE(Load(*Checkpoint::Open(directory_), 1, 2, 1).ok());
  ASSERT_GT(calls.size(), 30u);
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_LE(calls[i].first, calls[i].second);
    if (i > 0) {
      EXPECT_GE(calls[i].first, calls[i - 1].first);
    }
  }
  EXPECT_EQ(calls.back().first, calls.back().second);
}

TEST_F(Checkpoints, ALoadCanBeStoppedBetweenLayers) {
  WriteSingle(tensors_);
  int asked = 0;
  cancelled_ = [&] { return ++asked == 3; };
  EXPECT_TRUE(absl::IsCancelled(Load(*Checkpoint::Open(directory_), 1, 1, 0).status()));
  EXPECT_EQ(asked, 3);
}

TEST(Floats, EveryHalfIsExact) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t stored = static_cast<uint16_t>(bits);
    std::vector<float> out;
    AppendAsFloats(DType::kF16, reinterpret_cast<const std::byte*>(&stored), 1, out);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double fraction = static_cast<double>(bits & 1023);
    const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(out[0]), fraction != 0) << bits;
      continue;
    }
    const double expected =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
    ASSERT_EQ(out[0], static_cast<float>(sign * expected)) << bits;
  }
}

TEST(Floats, Bfloat16IsTheUpperHalf) {
  const uint16_t stored[] = {0x3f80, 0xc000, 0x0000, 0x7f80};
  std::vector<float> out;
  AppendAsFloats(DType::kBF16, reinterpret_cast<const std::byte*>(stored), 4, out);
  EXPECT_THAT(out, testing::ElementsAre(1.0f, -2.0f, 0.0f, HUGE_VALF));
}

}  // namespace
}  // namespace polyreme::weights
