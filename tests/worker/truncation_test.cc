// A checkpoint that a full disk or a broken download left short, cut at every kind of place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "tests/worker/checkpoint_builder.h"
#include "worker/weights/checkpoint.h"

namespace polyreme::weights {
namespace {

namespace fs = std::filesystem;
using plan::ModelSpec;
using testing::HasSubstr;

constexpr int kCuts = 4096;  // over all files of a checkpoint

// `count` lengths below `bytes`, longest first: all near either end, the others spread evenly.
std::set<uintmax_t, std::greater<>> CutsOf(uintmax_t bytes, uintmax_t count) {
  std::set<uintmax_t, std::greater<>> cuts;
  for (uintmax_t i = 0; i < std::min(count / 4, bytes); ++i) {
    cuts.insert(i);
    cuts.insert(bytes - 1 - i);
  }
  for (uintmax_t i = 0; cuts.size() < std::min(count, bytes); ++i) {
    cuts.insert((i * 2654435761u) % bytes);
  }
  return cuts;
}

class Truncation : public testing::Test {
 protected:
  void SetUp() override {
    const std::string config = TinyConfig(ModelSpec::Family::kQwen2);
    const std::vector<BuiltTensor> tensors = RandomTensors(*plan::ParseModelSpec(config), "F32");
    directory_ = FreshDirectory("truncation");
    WriteFile(directory_ + "/config.json", config);
    WriteFile(directory_ + "/generation_config.json", R"({"eos_token_id": [1, 2]})");
    std::vector<BuiltTensor> parts[2];
    Json map = Json::MakeObject();
    for (size_t i = 0; i < tensors.size(); ++i) {
      parts[i % 2].push_back(tensors[i]);
      map.Set(tensors[i].name, i % 2 == 0 ? "one.safetensors" : "two.safetensors");
    }
    WriteFile(directory_ + "/one.safetensors", SafetensorsBytes(parts[0]));
    WriteFile(directory_ + "/two.safetensors", SafetensorsBytes(parts[1]));
    WriteFile(directory_ + "/model.safetensors.index.json",
              Json::MakeObject({{"weight_map", std::move(map)}}).Dump());
  }
  void TearDown() override { fs::remove_all(directory_); }

  // What a worker does first with a checkpoint.
  absl::Status Open() const {
    RETURN_IF_ERROR(plan::ReadModelSpec(directory_).status());
    return Checkpoint::Open(directory_).status();
  }

  std::string directory_;
};

TEST_F(Truncation, OfAnyFileAtAnyByteIsAnErrorThatNamesTheFile) {
  ASSERT_TRUE(Open().ok()) << Open();
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory_)) files.push_back(entry.path());
  size_t num_cuts = 0;
  // Small files are cut at every byte, and leave more cuts to the large ones.
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    return fs::file_size(a) < fs::file_size(b);
  });
  for (size_t i = 0; i < files.size(); ++i) {
    const fs::path kept = files[i].string() + ".kept";
    fs::copy_file(files[i], kept);
    for (const uintmax_t bytes :
         CutsOf(fs::file_size(kept), (kCuts - num_cuts) / (files.size() - i))) {
      fs::resize_file(files[i], bytes);
      const absl::Status status = Open();
      ASSERT_FALSE(status.ok()) << files[i] << " of " << bytes << " bytes";
      ASSERT_THAT(Message(status), HasSubstr(files[i].filename().string())) << bytes << " bytes";
      ++num_cuts;
    }
    fs::rename(kept, files[i]);
  }
  EXPECT_EQ(num_cuts, kCuts);
  EXPECT_TRUE(Open().ok()) << Open();
}

}  // namespace
}  // namespace polyreme::weights
