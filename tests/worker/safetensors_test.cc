// The files that the format's reference reader refuses are refused here, with file and tensor
// named.
#include "worker/weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "parallel/base/limits.h"
#include "tests/worker/checkpoint_builder.h"

namespace polyreme::weights {
namespace {

using testing::HasSubstr;

constexpr std::string_view kTwo = R"({"__metadata__":{"format":"pt"},)"
                                  R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                                  R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";

std::string Refusal(std::string_view header, int64_t data_bytes) {
  const absl::StatusOr<std::vector<TensorEntry>> tensors =
      ParseSafetensorsHeader(header, data_bytes);
  EXPECT_TRUE(absl::IsDataLoss(tensors.status())) << header << "\n" << tensors.status();
  return Message(tensors.status());
}

// One tensor "t" with this dtype, shape and offsets.
std::string One(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"t":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

TEST(Safetensors, ReadsEntriesInOrderOfName) {
  const absl::StatusOr<std::vector<TensorEntry>> tensors = ParseSafetensorsHeader(kTwo, 14);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].dtype, "BF16");
  EXPECT_THAT((*tensors)[1].shape, testing::ElementsAre(2, 1));
  EXPECT_EQ((*tensors)[0].begin, 8);
}

TEST(Safetensors, AcceptsWhatTheReferenceAccepts) {
  EXPECT_TRUE(ParseSafetensorsHeader("{}", 0).ok());
  EXPECT_TRUE(ParseSafetensorsHeader("{}     ", 0).ok()) << "padded for alignment";
  EXPECT_TRUE(ParseSafetensorsHeader(One("F32", "[]", "[0,4]"), 4).ok()) << "a scalar";
  EXPECT_TRUE(ParseSafetensorsHeader(One("F32", "[0,7]", "[0,0]"), 0).ok()) << "an empty tensor";
  EXPECT_TRUE(ParseSafetensorsHeader(One("F8_E4M3", "[3]", "[0,3]"), 3).ok());
}

TEST(Safetensors, RefusesRangesThatDoNotTileTheData) {
  EXPECT_THAT(Refusal(kTwo, 15), HasSubstr("14 bytes of data"));
  EXPECT_THAT(Refusal(kTwo, 13), HasSubstr("a: expected data_offsets"));
  EXPECT_THAT(Refusal(One("F32", "[1]", "[4,8]"), 8), HasSubstr("t: leaves a hole"));
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                      R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                      6),
              HasSubstr("b: overlaps another"));
  EXPECT_THAT(Refusal(One("U8", "[4]", "[4,0]"), 4), HasSubstr("t: expected data_offsets"));
  EXPECT_THAT(Refusal(One("U8", "[4]", "[0,4,4]"), 4), HasSubstr("t: expected data_offsets"));
  EXPECT_THAT(Refusal(One("U8", "[4]", "[-4,0]"), 4), HasSubstr("t: expected data_offsets"));
}

TEST(Safetensors, RefusesSizesThatDoNotFitTypeAndShape) {
  EXPECT_THAT(Refusal(One("F32", "[3]", "[0,8]"), 8), HasSubstr("t: F32 of its shape take 12"));
  EXPECT_THAT(Refusal(One("F99", "[3]", "[0,8]"), 8), HasSubstr("t: unknown dtype 'F99'"));
  EXPECT_THAT(Refusal(One("F4", "[3]", "[0,1]"), 1), HasSubstr("t: ends within a byte"));
  EXPECT_THAT(Refusal(One("F32", "[-1]", "[0,4]"), 4), HasSubstr("t: expected shape"));
  EXPECT_THAT(Refusal(One("F32", "[1.5]", "[0,4]"), 4), HasSubstr("t: expected shape"));
  EXPECT_THAT(Refusal(One("F32", "4", "[0,4]"), 4), HasSubstr("t: expected shape"));
  EXPECT_THAT(Refusal(R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", 1),
              HasSubstr("t: expected shape"));
  EXPECT_THAT(Refusal(R"({"t":[]})", 0), HasSubstr("t: expected an object"));
  EXPECT_THAT(Refusal(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1),
              HasSubstr("t: unknown key 'x'"));
}

// A reader elsewhere accepted this shape, because its product wraps to 4.
TEST(Safetensors, RefusesShapesWhoseProductWraps) {
  EXPECT_THAT(Refusal(One("U8", "[4194305,4194305,211106198978564]", "[0,4]"), 4),
              HasSubstr("t: shape overflows"));
  EXPECT_THAT(Refusal(One("U8", "[9223372036854775807,2]", "[0,4]"), 4), HasSubstr("t: "));
  EXPECT_THAT(Refusal(One("U8", "[18446744073709551617]", "[0,1]"), 1), HasSubstr("t: "));
}

TEST(Safetensors, RefusesHeadersThatAreNoObjectOfDistinctTensors) {
  EXPECT_THAT(Refusal("[]", 0), HasSubstr("begin with '{'"));
  EXPECT_THAT(Refusal(" {}", 0), HasSubstr("begin with '{'"));
  EXPECT_THAT(Refusal("{", 0), HasSubstr("header"));
  EXPECT_THAT(Refusal("", 0), HasSubstr("begin with '{'"));
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                      2),
              HasSubstr("a"));
  EXPECT_THAT(Refusal(R"({"__metadata__":{"x":1}})", 0), HasSubstr("__metadata__"));
}

TEST(Safetensors, AHundredThousandTensorsAreReadAndOneMoreIsRefused) {
  std::string header = "{";
  for (int i = 0; i < limits::kMaxTensorsPerFile; ++i) {
    header +=
        fmt::format(R"("{}":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}},)", i, i, i + 1);
  }
  std::string most = header;
  most.back() = '}';
  EXPECT_TRUE(ParseSafetensorsHeader(most, limits::kMaxTensorsPerFile).ok());
  header += R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
  EXPECT_THAT(Refusal(header, limits::kMaxTensorsPerFile), HasSubstr("at most"));
}

class SafetensorsFiles : public testing::Test {
 protected:
  void SetUp() override { path_ = FreshDirectory("safetensors") + "/model.safetensors"; }
  void TearDown() override {
    std::filesystem::remove_all(std::filesystem::path(path_).parent_path());
  }
  absl::Status Open(std::string_view bytes) {
    WriteFile(path_, bytes);
    return SafetensorsFile::Open(path_).status();
  }
  std::string path_;
};

TEST_F(SafetensorsFiles, HandsOutTheBytesOfATensor) {
  WriteFile(path_, SafetensorsBytes(kTwo, "01234567abcdef"));
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(std::memcmp((*file)->DataOf((*file)->tensors()[0]), "abcdef", 6), 0);
  EXPECT_EQ((*file)->data_bytes(), 14);
  EXPECT_EQ((*file)->header(), kTwo);
  EXPECT_TRUE((*file)->CheckUnchanged().ok());
  WriteFile(path_, SafetensorsBytes(kTwo, "01234567abcdefg"));
  EXPECT_THAT(Message((*file)->CheckUnchanged()), HasSubstr("changed while it was read"));
}

TEST_F(SafetensorsFiles, EveryTruncationIsRefusedByName) {
  const std::string whole = SafetensorsBytes(kTwo, "01234567abcdef");
  for (size_t length = 0; length < whole.size(); ++length) {
    const absl::Status status = Open(whole.substr(0, length));
    EXPECT_TRUE(absl::IsDataLoss(status)) << length << " " << status;
    EXPECT_THAT(Message(status), HasSubstr(path_));
  }
  EXPECT_TRUE(Open(whole).ok());
}

TEST_F(SafetensorsFiles, RefusesHeaderLengthsBeyondTheFile) {
  for (const uint64_t length :
       {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{100}, uint64_t{100'000'001}}) {
    std::string bytes = "        {}";
    std::memcpy(bytes.data(), &length, sizeof length);
    EXPECT_THAT(Message(Open(bytes)), HasSubstr("expected a header of at most"));
  }
}

TEST_F(SafetensorsFiles, AbsentAndOddFilesAreNamed) {
  EXPECT_TRUE(absl::IsNotFound(SafetensorsFile::Open(path_).status()));
  std::filesystem::create_directories(path_);
  EXPECT_THAT(Message(SafetensorsFile::Open(path_).status()), HasSubstr("regular file"));
}

// Whatever a flipped byte does, what is accepted still tiles the data.
TEST_F(SafetensorsFiles, MutatedHeadersNeverGiveRangesOutsideTheData) {
  std::mt19937 random(20240917);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string header(kTwo);
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips) {
      header[random() % header.size()] = static_cast<char>(random() % 256);
    }
    const absl::StatusOr<std::vector<TensorEntry>> tensors = ParseSafetensorsHeader(header, 14);
    if (!tensors.ok()) {
      ++refused;
      continue;
    }
    int64_t sum = 0;
    for (const TensorEntry& tensor : *tensors) {
      ASSERT_TRUE(0 <= tensor.begin && tensor.begin <= tensor.end && tensor.end <= 14) << header;
      sum += tensor.bytes();
    }
    ASSERT_EQ(sum, 14) << header;
  }
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace polyreme::weights
