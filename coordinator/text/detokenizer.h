// Token ids to text as they come: never half a character, never taken back.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/text/tokenizer.h"
#include "parallel/base/ids.h"

namespace polyreme::text {

// The pieces of one generation's text. Joined, and with Flush at the end, they are
// Tokenizer::Decode of all tokens, however the tokens were grouped. Its whole state is a beginning
// of a character, at most three bytes: pushing the same tokens again makes it anew. Copyable; one
// thread at a time.
class Detokenizer {
 public:
  // The tokenizer is borrowed and outlives this.
  Detokenizer(const Tokenizer& tokenizer, SpecialTokensInOutput special_tokens)
      : tokenizer_(&tokenizer), special_tokens_(special_tokens) {}

  // Appends the characters that this token completes. Bytes that can be no character become U+FFFD
  // at once.
  void Push(TokenId token, std::string& text);
  // The end: appends U+FFFD if a character was begun and never completed.
  void Flush(std::string& text);

  // The bytes held back.
  std::string_view pending() const { return pending_; }

 private:
  const Tokenizer* tokenizer_;
  SpecialTokensInOutput special_tokens_;
  std::string pending_;
};

}  // namespace polyreme::text
