// The special tokens that stand around an encoded text: the "post_processor" of a tokenizer.json.
#pragma once

#include <string>
#include <vector>

#include "coordinator/text/vocabulary.h"
#include "parallel/base/ids.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

struct PostProcessor {
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;

  // null, TemplateProcessing (its "single" template), ByteLevel (which changes no ids), or a
  // Sequence of them. InvalidArgument, naming the key, for anything else and for ids that are not
  // in the vocabulary.
  static absl::StatusOr<PostProcessor> Make(const Json* post_processor, const std::string& path,
                                            const Vocabulary& vocabulary);
};

}  // namespace polyreme::text
