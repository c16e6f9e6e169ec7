// Finds added tokens (<|im_start|>, <think>, ...) in text before anything else cuts it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/text_run.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// One entry of "added_tokens" in tokenizer.json, or of "added_tokens_decoder" in
// tokenizer_config.json.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // only where no word goes on before or behind it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // looked for in normalised text
  bool special = false;      // text, in the content of a message; left out by skip_special_tokens

  // InvalidArgument for empty content or an unknown key. The id is the caller's to read.
  static absl::StatusOr<AddedToken> Read(const JsonFields& fields);
};

// Part [begin, end) of a text: one added token, or text between them.
struct AddedTokenSpan {
  size_t begin = 0;
  size_t end = 0;
  std::optional<TokenId> id;
};

// A set of added tokens in a trie over bytes. Immutable after it is made; any thread.
class AddedTokenMatcher {
 public:
  // patterns[i] is what tokens[i] looks like in the text that will be split (normalised or not);
  // not empty.
  AddedTokenMatcher(std::span<const AddedToken> tokens, std::span<const std::string> patterns);

  bool empty() const { return tokens_.empty(); }

  // Leftmost-longest matches and the text between them, in order. A token lies within one run; a
  // special one only in a run of the template. So nothing in a message's content decides what is
  // found in the template. Other rules as in huggingface/tokenizers, added_vocabulary.rs. Linear in
  // the text times the longest token.
  std::vector<AddedTokenSpan> Split(const RunText& text) const;

 private:
  struct Match {
    int32_t token = -1;  // index into tokens_
    size_t end = 0;
  };
  Match LongestMatch(std::string_view run_text, size_t begin, TextKind kind) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<uint64_t, int32_t> children_;  // node << 8 | byte -> node; 0 is the root
  std::vector<int32_t> token_of_node_;               // or -1
};

}  // namespace polyreme::text
