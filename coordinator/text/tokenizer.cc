#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"
#include "parallel/base/file.h"
#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

AddedTokenMatcher MatcherOf(const std::vector<AddedToken>& all, bool is_normalized,
                            const Normalizer& normalizer) {
  std::vector<AddedToken> tokens;
  std::vector<std::string> patterns;
  for (const AddedToken& token : all) {
    if (token.normalized != is_normalized) continue;
    RunText pattern;
    pattern.Append(token.content, TextKind::kTemplate);
    if (is_normalized) pattern = normalizer.Normalize(std::move(pattern));
    tokens.push_back(token);
    patterns.push_back(pattern.text);
  }
  return AddedTokenMatcher(tokens, patterns);
}

std::optional<NamedToken> Named(const std::optional<AddedToken>& token,
                                const Vocabulary& vocabulary) {
  if (!token) return std::nullopt;
  const std::optional<TokenId> id = vocabulary.Find(token->content);
  CHECK(id.has_value(), "\"{}\" was not added to the vocabulary", token->content);
  return NamedToken{token->content, *id};
}

void Append(std::span<const TokenId> more, std::vector<TokenId>& ids) {
  ids.insert(ids.end(), more.begin(), more.end());
}

absl::Status TooLong(size_t size) {
  return InvalidArgument("expected text of at most {} bytes, got {}", limits::kMaxPromptBytes,
                         size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string json,
                   ReadFile(directory + "/tokenizer.json", limits::kMaxTokenizerFileBytes));
  absl::StatusOr<std::string> config =
      ReadFile(directory + "/tokenizer_config.json", limits::kMaxConfigFileBytes);
  if (config.status().code() == absl::StatusCode::kNotFound) config = "{}";
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = LoadFromText(json, *config);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), directory);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::LoadFromText(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  ASSIGN_OR_RETURN(TokenizerParts parts,
                   TokenizerParts::Read(tokenizer_json, tokenizer_config_json));
  return std::unique_ptr<const Tokenizer>(new Tokenizer(std::move(parts)));
}

Tokenizer::Tokenizer(TokenizerParts parts)
    : vocabulary_(std::move(parts.vocabulary)),
      raw_tokens_(MatcherOf(parts.added_tokens, false, parts.normalizer)),
      normalized_tokens_(MatcherOf(parts.added_tokens, true, parts.normalizer)),
      normalizer_(std::move(parts.normalizer)),
      pre_tokenizer_(std::move(parts.pre_tokenizer)),
      bpe_(std::move(parts.bpe)),
      post_processor_(std::move(parts.post_processor)),
      special_ids_(std::move(parts.special_ids)),
      bos_(Named(parts.config.bos, vocabulary_)),
      eos_(Named(parts.config.eos, vocabulary_)),
      unk_(Named(parts.config.unk, vocabulary_)),
      pad_(Named(parts.config.pad, vocabulary_)) {
  ReadTokenBytes();
}

// Like the reference's decoder, an added token too is read by the alphabet if all its characters
// are in it, and stands for its own UTF-8 otherwise.
void Tokenizer::ReadTokenBytes() {
  token_begins_.push_back(0);
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (const std::string* token = IdToToken(id))
      token_bytes_ += AlphabetToBytes(*token).value_or(*token);
    token_begins_.push_back(static_cast<uint32_t>(token_bytes_.size()));
  }
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  if (std::ssize(text) > limits::kMaxPromptBytes) return TooLong(text.size());
  RunText runs;
  runs.Append(text, options.in_text == SpecialTokensInText::kRecognised ? TextKind::kTemplate
                                                                        : TextKind::kContent);
  return EncodeRuns(runs, options.around);
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::EncodeSegments(std::span<const Segment> segments,
                                                               SpecialTokensAround around) const {
  size_t size = 0;
  for (const Segment& segment : segments) size += segment.text.size();
  if (static_cast<int64_t>(size) > limits::kMaxPromptBytes) return TooLong(size);
  RunText runs;
  runs.text.reserve(size);
  for (const Segment& segment : segments) {
    runs.Append(segment.text,
                segment.is_literal_template ? TextKind::kTemplate : TextKind::kContent);
  }
  return EncodeRuns(runs, around);
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::EncodeRuns(const RunText& text,
                                                           SpecialTokensAround around) const {
  if (const size_t offset = FindInvalidUtf8(text.text); offset != std::string_view::npos) {
    return InvalidArgument("expected UTF-8 text, got byte 0x{:02X} at offset {}",
                           static_cast<uint8_t>(text.text[offset]), offset);
  }
  std::vector<TokenId> ids;
  Scratch scratch;
  if (around == SpecialTokensAround::kAdded) Append(post_processor_.prefix, ids);
  for (const AddedTokenSpan& span : raw_tokens_.Split(text)) {
    if (span.id) {
      ids.push_back(*span.id);
    } else if (normalizer_.is_identity() && normalized_tokens_.empty()) {
      RETURN_IF_ERROR(EncodePlain(
          std::string_view(text.text).substr(span.begin, span.end - span.begin), scratch, ids));
    } else {
      RETURN_IF_ERROR(
          EncodeBetween(normalizer_.Normalize(text.Slice(span.begin, span.end)), scratch, ids));
    }
  }
  if (around == SpecialTokensAround::kAdded) Append(post_processor_.suffix, ids);
  return ids;
}

// Normalised text between the added tokens that were found before normalisation.
absl::Status Tokenizer::EncodeBetween(const RunText& text, Scratch& scratch,
                                      std::vector<TokenId>& ids) const {
  for (const AddedTokenSpan& span : normalized_tokens_.Split(text)) {
    if (span.id) {
      ids.push_back(*span.id);
    } else {
      RETURN_IF_ERROR(EncodePlain(
          std::string_view(text.text).substr(span.begin, span.end - span.begin), scratch, ids));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::EncodePlain(std::string_view text, Scratch& scratch,
                                    std::vector<TokenId>& ids) const {
  return pre_tokenizer_.Split(text, scratch.pre_tokenizer, [&](std::string_view piece) {
    return bpe_.Encode(piece, scratch.bpe, ids);
  });
}

void Tokenizer::AppendBytes(TokenId id, std::string& out) const {
  if (id < 0 || id >= vocab_size()) return;
  out.append(token_bytes_, token_begins_[id], token_begins_[id + 1] - token_begins_[id]);
}

std::string Tokenizer::Decode(std::span<const TokenId> ids,
                              SpecialTokensInOutput special_tokens) const {
  std::string bytes;
  for (const TokenId id : ids) {
    if (special_tokens == SpecialTokensInOutput::kKept || !IsSpecial(id)) AppendBytes(id, bytes);
  }
  std::string text;
  std::string_view rest = AppendWholeCharacters(bytes, text);
  if (!rest.empty()) text += kReplacementCharacter;
  return text;
}

bool Tokenizer::IsSpecial(TokenId id) const {
  return std::binary_search(special_ids_.begin(), special_ids_.end(), id);
}

}  // namespace polyreme::text
