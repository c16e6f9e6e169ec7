// Text to token ids and back, by a Hugging Face tokenizer.json of the byte-level BPE kind.
//
// The way of a text: added tokens are found in it; what lies between is normalised, cut into pieces
// and merged, piece by piece; special tokens are put around. Equality with huggingface/tokenizers
// is tested on its own results (scripts/make_tokenizer_reference.py). What is not known in the file
// is refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/segment.h"
#include "coordinator/text/text_run.h"
#include "coordinator/text/vocabulary.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Whether "<|im_end|>" in a text is the token or ten characters.
enum class SpecialTokensInText : uint8_t { kRecognised, kPlainText };
// Whether the post-processor puts its tokens (such as a beginning of sequence) around the text.
enum class SpecialTokensAround : uint8_t { kAdded, kLeftOut };

struct EncodeOptions {
  SpecialTokensInText in_text = SpecialTokensInText::kRecognised;
  SpecialTokensAround around = SpecialTokensAround::kAdded;
};

enum class SpecialTokensInOutput : uint8_t { kKept, kSkipped };

struct TokenizerParts;

// A token with a role, such as the end of a sequence.
struct NamedToken {
  std::string text;
  TokenId id = 0;
};

// Immutable; any thread.
class Tokenizer {
 public:
  // Reads tokenizer.json and, if it is there, tokenizer_config.json of a directory.
  // Errors: NotFound, ResourceExhausted by size, InvalidArgument naming file and key.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::string& directory);
  // The same from the files' texts.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> LoadFromText(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json = "{}");

  // Errors: InvalidArgument for text that is not UTF-8 or longer than limits::kMaxPromptBytes, or
  // that has a byte the vocabulary cannot spell.
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;

  // A rendered chat: special tokens are recognised in the template's segments and stay text in the
  // others; but for that, the ids are those of the segments' concatenation (an added token that
  // would lie across the border of a template's segment and a message's is not recognised). Other
  // added tokens, such as a <think> that is not special, are recognised in both. Errors as Encode.
  absl::StatusOr<std::vector<TokenId>> EncodeSegments(
      std::span<const Segment> segments,
      SpecialTokensAround around = SpecialTokensAround::kLeftOut) const;

  // Appends the bytes a token stands for: part of a character, maybe. Nothing for an id without a
  // token.
  void AppendBytes(TokenId id, std::string& out) const;

  // The text of whole tokens; bytes that are no UTF-8 become U+FFFD. Ids without a token are passed
  // over.
  std::string Decode(std::span<const TokenId> ids, SpecialTokensInOutput special_tokens) const;

  bool IsSpecial(TokenId id) const;
  // The token as the vocabulary spells it ("Ġthe"), or nullptr.
  const std::string* IdToToken(TokenId id) const { return vocabulary_.TokenString(id); }
  std::optional<TokenId> TokenToId(std::string_view token) const { return vocabulary_.Find(token); }
  // One more than the highest id. The model may have more rows of logits, or fewer.
  int32_t vocab_size() const { return vocabulary_.size(); }

  const std::optional<NamedToken>& bos() const { return bos_; }
  const std::optional<NamedToken>& eos() const { return eos_; }
  const std::optional<NamedToken>& unk() const { return unk_; }
  const std::optional<NamedToken>& pad() const { return pad_; }

 private:
  struct Scratch {
    PreTokenizer::Scratch pre_tokenizer;
    Bpe::Scratch bpe;
  };
  explicit Tokenizer(TokenizerParts parts);
  void ReadTokenBytes();

  absl::StatusOr<std::vector<TokenId>> EncodeRuns(const RunText& text,
                                                  SpecialTokensAround around) const;
  absl::Status EncodeBetween(const RunText& text, Scratch& scratch,
                             std::vector<TokenId>& ids) const;
  absl::Status EncodePlain(std::string_view text, Scratch& scratch,
                           std::vector<TokenId>& ids) const;

  Vocabulary vocabulary_;
  AddedTokenMatcher raw_tokens_;         // found before normalisation
  AddedTokenMatcher normalized_tokens_;  // and behind it
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  PostProcessor post_processor_;
  std::vector<TokenId> special_ids_;  // sorted
  std::optional<NamedToken> bos_, eos_, unk_, pad_;
  // Bytes of token i: token_bytes_[token_begins_[i] .. token_begins_[i + 1]).
  std::string token_bytes_;
  std::vector<uint32_t> token_begins_;
};

}  // namespace polyreme::text
