#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/utf8.h"

namespace polyreme::text {
namespace {

constexpr size_t kMaxContentBytes = 1024;

uint64_t Edge(int32_t node, char byte) {
  return static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | static_cast<uint8_t>(byte);
}

bool IsSingleWord(std::string_view text, size_t begin, size_t end) {
  const std::string_view before = text.substr(0, begin);
  const std::string_view behind = text.substr(end);
  return (before.empty() || !IsWordCharacter(LastCodePoint(before).value)) &&
         (behind.empty() || !IsWordCharacter(FirstCodePoint(behind).value));
}

// Where the white space that ends at `end` begins, at or behind `limit`.
size_t SpaceBegin(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const CodePoint c = LastCodePoint(text.substr(0, end));
    if (!IsWhiteSpace(c.value)) break;
    end -= c.num_bytes;
  }
  return end;
}

size_t SpaceEnd(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const CodePoint c = FirstCodePoint(text.substr(begin));
    if (!IsWhiteSpace(c.value)) break;
    begin += c.num_bytes;
  }
  return begin;
}

}  // namespace

absl::StatusOr<AddedToken> AddedToken::Read(const JsonFields& fields) {
  RETURN_IF_ERROR(fields.AllowOnly(
      {"__type", "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  AddedToken token;
  ASSIGN_OR_RETURN(token.content, fields.String("content"));
  if (token.content.empty() || token.content.size() > kMaxContentBytes) {
    return InvalidArgument("{}: expected 1 to {} bytes, got {}", fields.PathTo("content"),
                           kMaxContentBytes, token.content.size());
  }
  ASSIGN_OR_RETURN(token.single_word, fields.Bool("single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, fields.Bool("lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, fields.Bool("rstrip", false));
  ASSIGN_OR_RETURN(token.special, fields.Bool("special", false));
  ASSIGN_OR_RETURN(token.normalized, fields.Bool("normalized", !token.special));
  return token;
}

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens,
                                     std::span<const std::string> patterns)
    : tokens_(tokens.begin(), tokens.end()), token_of_node_(1, -1) {
  CHECK(tokens.size() == patterns.size(), "{} tokens, {} patterns", tokens.size(), patterns.size());
  for (size_t i = 0; i < patterns.size(); ++i) {
    int32_t node = 0;
    for (const char byte : patterns[i]) {
      const auto [edge, is_new] =
          children_.try_emplace(Edge(node, byte), static_cast<int32_t>(token_of_node_.size()));
      if (is_new) token_of_node_.push_back(-1);
      node = edge->second;
    }
    if (node != 0) token_of_node_[node] = static_cast<int32_t>(i);
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::LongestMatch(std::string_view run_text, size_t begin,
                                                         TextKind kind) const {
  Match longest;
  int32_t node = 0;
  for (size_t i = begin; i < run_text.size(); ++i) {
    const auto edge = children_.find(Edge(node, run_text[i]));
    if (edge == children_.end()) break;
    node = edge->second;
    const int32_t token = token_of_node_[node];
    if (token < 0 || (tokens_[token].special && kind == TextKind::kContent)) continue;
    longest = {token, i + 1};
  }
  return longest;
}

std::vector<AddedTokenSpan> AddedTokenMatcher::Split(const RunText& text) const {
  const std::string_view all = text.text;
  std::vector<AddedTokenSpan> spans;
  size_t covered = 0;  // the end of the last span
  size_t at = 0;
  for (const RunText::Run& run : text.runs) {
    while (!empty() && at < run.end) {
      const Match match = LongestMatch(all.substr(0, run.end), at, run.kind);
      if (match.token < 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[match.token];
      size_t begin = at;
      size_t end = match.end;
      at = match.end;
      if (token.single_word && !IsSingleWord(all, begin, end)) continue;
      if (token.lstrip) begin = SpaceBegin(all, begin, std::min(covered, begin));
      if (token.rstrip) end = SpaceEnd(all, end);
      if (covered < begin) spans.push_back({covered, begin, std::nullopt});
      spans.push_back({begin, end, token.id});
      covered = end;
    }
    at = std::max(at, run.end);
  }
  if (covered < all.size()) spans.push_back({covered, all.size(), std::nullopt});
  return spans;
}

}  // namespace polyreme::text
