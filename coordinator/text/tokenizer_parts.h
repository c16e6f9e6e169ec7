// Reads the files of a tokenizer into the parts it is made of, and refuses files that do not fit
// together.
#pragma once

#include <string_view>
#include <vector>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/tokenizer_config.h"
#include "coordinator/text/vocabulary.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::text {

struct TokenizerParts {
  Vocabulary vocabulary;                 // the model's tokens and the added ones
  std::vector<AddedToken> added_tokens;  // of both files; contents are distinct
  std::vector<TokenId> special_ids;      // of those that are special; sorted
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  PostProcessor post_processor;
  TokenizerConfig config;

  // Errors: InvalidArgument naming file and key. Ids of the model's vocabulary must leave no hole
  // that no added token fills; ids of added tokens beyond them may. Truncation and padding are
  // passed over: a server does neither.
  static absl::StatusOr<TokenizerParts> Read(std::string_view tokenizer_json,
                                             std::string_view tokenizer_config_json);
};

}  // namespace polyreme::text
