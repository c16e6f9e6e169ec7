// What tokenizer_config.json adds to a tokenizer.json: which tokens mark beginning and end, and
// more added tokens.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "coordinator/text/added_tokens.h"
#include "parallel/base/status.h"

namespace polyreme::text {

struct TokenizerConfig {
  // By content; what their ids are, tokenizer.json decides. Absent if the file does not name them.
  std::optional<AddedToken> bos;
  std::optional<AddedToken> eos;
  std::optional<AddedToken> unk;
  std::optional<AddedToken> pad;
  std::vector<AddedToken>
      other_special_tokens;  // extra_special_tokens, additional_special_tokens, sep, cls, mask
  std::vector<AddedToken> added_tokens;  // added_tokens_decoder, with ids, in the order of ids

  // Reads the text of a tokenizer_config.json. Keys that have nothing to do with encoding are
  // passed over. InvalidArgument, naming the key, if a value has the wrong form.
  static absl::StatusOr<TokenizerConfig> Parse(std::string_view text);
};

}  // namespace polyreme::text
