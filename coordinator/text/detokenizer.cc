#include "coordinator/text/detokenizer.h"

#include "coordinator/text/utf8.h"

namespace polyreme::text {

void Detokenizer::Push(TokenId token, std::string& text) {
  if (special_tokens_ == SpecialTokensInOutput::kSkipped && tokenizer_->IsSpecial(token)) return;
  tokenizer_->AppendBytes(token, pending_);
  const size_t kept = AppendWholeCharacters(pending_, text).size();
  pending_.erase(0, pending_.size() - kept);
}

void Detokenizer::Flush(std::string& text) {
  if (!pending_.empty()) text += kReplacementCharacter;
  pending_.clear();
}

}  // namespace polyreme::text
