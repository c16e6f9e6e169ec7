// Unicode normalisation of text, as the "normalizer" of a tokenizer.json asks: NFC and its three
// sisters.
//
// By utf8proc's tables (Unicode 15). The reference's are of Unicode 9 and leave marks that are
// newer, of a few rare scripts, where they stand.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/text_run.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Immutable after it is made; any thread.
class Normalizer {
 public:
  // null, NFC, NFD, NFKC, NFKD, or a Sequence of them; InvalidArgument naming what else is asked.
  static absl::StatusOr<Normalizer> Make(const Json* normalizer, const std::string& path);

  bool is_identity() const { return forms_.empty(); }

  // Normalises well-formed text, in linear time but for sorting the marks of one base character. A
  // run's kind goes with its characters; where characters of two kinds melt into one, the result is
  // content.
  RunText Normalize(RunText text) const;

 private:
  enum class Form : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
  absl::Status Read(const Json& normalizer, const std::string& path, int32_t depth);
  static RunText Apply(Form form, const RunText& text);

  std::vector<Form> forms_;
};

}  // namespace polyreme::text
