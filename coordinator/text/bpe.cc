#include "coordinator/text/bpe.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/utf8.h"

namespace polyreme::text {
namespace {

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

using MergeParts = std::pair<std::string_view, std::string_view>;

// Both spellings of a merge: ["a", "b"] and "a b". Nothing if it is neither.
std::optional<MergeParts> PartsOf(const Json& merge) {
  if (merge.is_array() && merge.as_array().size() == 2 && merge.as_array()[0].is_string() &&
      merge.as_array()[1].is_string()) {
    return MergeParts(merge.as_array()[0].as_string(), merge.as_array()[1].as_string());
  }
  if (!merge.is_string()) return std::nullopt;
  const std::string_view text = merge.as_string();
  const size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos) return std::nullopt;
  return MergeParts(text.substr(0, space), text.substr(space + 1));
}

bool Contains(std::span<const TokenId> sorted_ids, TokenId id) {
  return std::binary_search(sorted_ids.begin(), sorted_ids.end(), id);
}

// std::push_heap keeps the largest first; we want the smallest.
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank_and_position > b.rank_and_position;
};

}  // namespace

absl::StatusOr<Bpe> Bpe::Make(const JsonFields& model, const Vocabulary& vocabulary,
                              std::span<const TokenId> special_ids) {
  Bpe bpe;
  RETURN_IF_ERROR(bpe.ReadOptions(model, vocabulary));
  RETURN_IF_ERROR(bpe.ReadBytes(model, vocabulary));
  RETURN_IF_ERROR(bpe.ReadMerges(model, vocabulary, special_ids));
  if (bpe.ignores_merges_) bpe.ReadWholePieces(vocabulary, special_ids);
  return bpe;
}

absl::Status Bpe::ReadOptions(const JsonFields& model, const Vocabulary& vocabulary) {
  RETURN_IF_ERROR(model.AllowOnly({"type", "dropout", "unk_token", "continuing_subword_prefix",
                                   "end_of_word_suffix", "fuse_unk", "byte_fallback",
                                   "ignore_merges", "vocab", "merges"}));
  if (const Json* dropout = model.Find("dropout")) {
    return InvalidArgument("{}: expected null, got {}: encoding must not be random",
                           model.PathTo("dropout"), dropout->Dump());
  }
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string affix, model.String(key, ""));
    if (!affix.empty()) {
      return InvalidArgument(
          "{}: expected null or \"\", got \"{}\": only byte-level BPE is supported",
          model.PathTo(key), affix);
    }
  }
  ASSIGN_OR_RETURN(const bool falls_back_to_bytes, model.Bool("byte_fallback", false));
  if (falls_back_to_bytes) {
    return InvalidArgument("{}: expected false, got true: only byte-level BPE is supported",
                           model.PathTo("byte_fallback"));
  }
  ASSIGN_OR_RETURN(ignores_merges_, model.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(fuses_unknown_, model.Bool("fuse_unk", false));
  if (model.Find("unk_token") != nullptr) {
    ASSIGN_OR_RETURN(const std::string unknown, model.String("unk_token"));
    unknown_id_ = vocabulary.Find(unknown);
    if (!unknown_id_) {
      return InvalidArgument("{}: \"{}\" is not in the vocabulary", model.PathTo("unk_token"),
                             unknown);
    }
  }
  return absl::OkStatus();
}

absl::Status Bpe::ReadBytes(const JsonFields& model, const Vocabulary& vocabulary) {
  int32_t num_known = 0;
  for (int32_t byte = 0; byte < 256; ++byte) {
    std::string character;
    AppendUtf8(AlphabetCharacter(static_cast<uint8_t>(byte)), character);
    byte_ids_[byte] = vocabulary.Find(character).value_or(kNoToken);
    num_known += byte_ids_[byte] != kNoToken;
  }
  if (num_known == 0) {
    return InvalidArgument(
        "{}: none of the 256 byte characters is in the vocabulary: is this byte-level BPE?",
        model.PathTo("vocab"));
  }
  return absl::OkStatus();
}

absl::Status Bpe::ReadMerges(const JsonFields& model, const Vocabulary& vocabulary,
                             std::span<const TokenId> special_ids) {
  ASSIGN_OR_RETURN(const Json::Array* merges, model.Array("merges"));
  if (std::ssize(*merges) > limits::kMaxVocabulary * int64_t{4}) {
    return InvalidArgument("{}: expected at most {} merges, got {}", model.PathTo("merges"),
                           limits::kMaxVocabulary * int64_t{4}, merges->size());
  }
  merges_.reserve(merges->size());
  std::string merged;
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::optional<MergeParts> parts = PartsOf((*merges)[i]);
    if (!parts) {
      return InvalidArgument("{}: expected two tokens, as [\"a\", \"b\"] or \"a b\", got {}",
                             model.PathTo("merges", i), (*merges)[i].Dump());
    }
    merged.assign(parts->first).append(parts->second);
    const std::optional<TokenId> left = vocabulary.Find(parts->first);
    const std::optional<TokenId> right = vocabulary.Find(parts->second);
    const std::optional<TokenId> merged_id = vocabulary.Find(merged);
    if (!left || !right || !merged_id) {
      return InvalidArgument("{}: \"{}\" is not in the vocabulary", model.PathTo("merges", i),
                             !left    ? parts->first
                             : !right ? parts->second
                                      : merged);
    }
    if (Contains(special_ids, *merged_id)) continue;
    // The last of two equal merges counts, as in the reference.
    merges_.insert_or_assign(PairKey(*left, *right), Merge{static_cast<int32_t>(i), *merged_id});
  }
  return absl::OkStatus();
}

void Bpe::ReadWholePieces(const Vocabulary& vocabulary, std::span<const TokenId> special_ids) {
  whole_pieces_.reserve(vocabulary.size());
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const std::string* token = vocabulary.TokenString(id);
    if (token == nullptr || Contains(special_ids, id)) continue;
    if (std::optional<std::string> bytes = AlphabetToBytes(*token)) {
      whole_pieces_.emplace(*std::move(bytes), id);
    }
  }
}

absl::Status Bpe::Encode(std::string_view piece, Scratch& scratch,
                         std::vector<TokenId>& ids) const {
  if (piece.empty()) return absl::OkStatus();
  if (ignores_merges_) {
    if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
      ids.push_back(whole->second);
      return absl::OkStatus();
    }
  }
  RETURN_IF_ERROR(StartSymbols(piece, scratch));
  MergeSymbols(scratch);
  // The first symbol is never merged away: a pair's left part stays.
  for (int32_t i = 0; i != -1; i = scratch.symbols_[i].next) ids.push_back(scratch.symbols_[i].id);
  return absl::OkStatus();
}

absl::Status Bpe::StartSymbols(std::string_view piece, Scratch& scratch) const {
  auto& symbols = scratch.symbols_;
  symbols.clear();
  bool last_is_unknown = false;
  for (const char c : piece) {
    const uint8_t byte = static_cast<uint8_t>(c);
    TokenId id = byte_ids_[byte];
    const bool is_unknown = id == kNoToken;
    if (is_unknown) {
      if (!unknown_id_)
        return InvalidArgument("the tokenizer has no token for byte 0x{:02X} and no unk_token",
                               byte);
      id = *unknown_id_;
    }
    const bool fuses = is_unknown && last_is_unknown && fuses_unknown_;
    last_is_unknown = is_unknown;
    if (fuses) continue;
    const int32_t position = static_cast<int32_t>(symbols.size());
    symbols.push_back({.id = id, .previous = position - 1, .next = position + 1});
  }
  symbols.back().next = -1;
  return absl::OkStatus();
}

const Bpe::Merge* Bpe::FindMerge(TokenId left, TokenId right) const {
  const auto merge = merges_.find(PairKey(left, right));
  return merge == merges_.end() ? nullptr : &merge->second;
}

bool Bpe::AddCandidate(int32_t position, Scratch& scratch) const {
  if (position < 0 || scratch.symbols_[position].next < 0) return false;
  const Scratch::Symbol& left = scratch.symbols_[position];
  const Merge* merge = FindMerge(left.id, scratch.symbols_[left.next].id);
  if (merge == nullptr) return false;
  const uint64_t rank = static_cast<uint32_t>(merge->rank);
  scratch.heap_.push_back({rank << 32 | static_cast<uint32_t>(position), merge->merged_id});
  return true;
}

void Bpe::MergeSymbols(Scratch& scratch) const {
  auto& symbols = scratch.symbols_;
  auto& heap = scratch.heap_;
  heap.clear();
  for (int32_t i = 0; i + 1 < std::ssize(symbols); ++i) AddCandidate(i, scratch);
  std::make_heap(heap.begin(), heap.end(), kLater);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), kLater);
    const Scratch::Candidate candidate = heap.back();
    heap.pop_back();
    ++scratch.num_heap_pops_;
    const int32_t position = static_cast<int32_t>(candidate.rank_and_position & 0xFFFFFFFF);
    Scratch::Symbol& left = symbols[position];
    if (left.is_merged_away || left.next < 0) continue;
    // A candidate may be out of date. Like the reference, ask whether the pair that stands here now
    // has the same result, not whether it is the same pair: this decides in which order some words
    // are merged.
    Scratch::Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->merged_id != candidate.merged_id) continue;
    left.id = candidate.merged_id;
    right.is_merged_away = true;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = position;
    for (const int32_t changed : {left.previous, position}) {
      if (AddCandidate(changed, scratch)) std::push_heap(heap.begin(), heap.end(), kLater);
    }
  }
}

}  // namespace polyreme::text
