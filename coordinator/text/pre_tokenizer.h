// Cuts text into the pieces that are encoded each by itself: the "pre_tokenizer" of a
// tokenizer.json.
//
// Supported: Split (Regex or String; Isolated, Removed, MergedWithPrevious, MergedWithNext,
// Contiguous; invert), Digits, ByteLevel, and Sequences of them. ByteLevel must come last, and be
// there: its alphabet is what the model's vocabulary is written in. Pieces stay raw bytes here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/regex.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Immutable after it is made; any thread, each with a Scratch of its own.
class PreTokenizer {
 public:
  // Memory of one call after another.
  class Scratch {
   private:
    friend class PreTokenizer;
    RegexScratch regex_;
    std::vector<std::vector<RegexSpan>> spans_;  // per stage
  };

  // InvalidArgument, naming the key, for what is not supported.
  static absl::StatusOr<PreTokenizer> Make(const Json* pre_tokenizer, const std::string& path);

  // Calls `take` with each piece in order, none empty; stops at its first error. A piece is valid
  // during the call.
  using Take = absl::FunctionRef<absl::Status(std::string_view piece)>;
  absl::Status Split(std::string_view text, Scratch& scratch, Take take) const;

 private:
  enum class Behavior : uint8_t {
    kIsolated,
    kRemoved,
    kMergedWithPrevious,
    kMergedWithNext,
    kContiguous
  };
  struct Stage {
    Regex regex;
    Behavior behavior = Behavior::kIsolated;
    bool is_inverted = false;
  };

  absl::Status Read(const Json& pre_tokenizer, const std::string& path, int32_t depth);
  absl::Status ReadByteLevel(const JsonFields& fields);
  absl::Status ReadSplit(const JsonFields& fields);
  absl::Status ReadDigits(const JsonFields& fields);
  static absl::StatusOr<Regex> ReadPattern(const JsonFields& fields);

  absl::Status RunStage(size_t stage, std::string_view text, Scratch& scratch, Take take) const;
  static void Arrange(Behavior behavior, std::vector<RegexSpan>& spans);

  std::vector<Stage> stages_;
  size_t prefix_stage_ = 0;  // the stage that ByteLevel's own splitting begins with
  bool adds_prefix_space_ = false;
  bool has_byte_level_ = false;
};

}  // namespace polyreme::text
