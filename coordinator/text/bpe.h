// Byte-level byte-pair encoding: one piece of text (a word, as the pre-tokenizer cut it) to token
// ids.
//
// A piece begins as one symbol per byte. Again and again the neighbouring pair that was learnt
// first (lowest rank, leftmost on ties) becomes one symbol, until no neighbours are a known pair.
// O(n log n) by a heap of pairs. Source: Sennrich et al. 2016; the order of merges and its corner
// cases follow huggingface/tokenizers, models/bpe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/vocabulary.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Immutable after it is made; any thread, each with a Scratch of its own.
class Bpe {
 public:
  // Memory of one call after another, and what they cost.
  class Scratch {
   public:
    // Pairs taken from the heap so far: what the time of a long piece is made of.
    int64_t num_heap_pops() const { return num_heap_pops_; }

   private:
    friend class Bpe;
    struct Symbol {
      TokenId id = 0;
      int32_t previous = -1;
      int32_t next = -1;
      bool is_merged_away = false;
    };
    struct Candidate {
      uint64_t rank_and_position = 0;  // the order of merging
      TokenId merged_id = 0;
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    int64_t num_heap_pops_ = 0;
  };

  // Reads the "model" object of a tokenizer.json but for its vocab, which the caller has read
  // already.
  //
  // special_ids   ids of special tokens, sorted: no piece ever becomes one of them, neither whole
  // nor by merging. Errors: InvalidArgument, naming the key, for a merge whose parts or result are
  // no tokens, and for dropout, byte_fallback, a prefix or suffix of words, or any unknown key.
  static absl::StatusOr<Bpe> Make(const JsonFields& model, const Vocabulary& vocabulary,
                                  std::span<const TokenId> special_ids);

  // Appends the ids of one piece of at most limits::kMaxPromptBytes bytes.
  // Errors: InvalidArgument if a byte has no token and the model no unk_token.
  absl::Status Encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>& ids) const;

 private:
  struct Merge {
    int32_t rank = 0;
    TokenId merged_id = 0;
  };

  absl::Status ReadOptions(const JsonFields& model, const Vocabulary& vocabulary);
  absl::Status ReadBytes(const JsonFields& model, const Vocabulary& vocabulary);
  absl::Status ReadMerges(const JsonFields& model, const Vocabulary& vocabulary,
                          std::span<const TokenId> special_ids);
  void ReadWholePieces(const Vocabulary& vocabulary, std::span<const TokenId> special_ids);

  absl::Status StartSymbols(std::string_view piece, Scratch& scratch) const;
  void MergeSymbols(Scratch& scratch) const;
  const Merge* FindMerge(TokenId left, TokenId right) const;
  // Appends the pair that begins at a symbol to the heap's array, if it is one that merges.
  bool AddCandidate(int32_t position, Scratch& scratch) const;

  static constexpr TokenId kNoToken = -1;
  std::array<TokenId, 256> byte_ids_{};
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by left id << 32 | right id
  StringMap<TokenId> whole_pieces_;              // bytes → id; empty unless ignore_merges
  std::optional<TokenId> unknown_id_;
  bool fuses_unknown_ = false;
  bool ignores_merges_ = false;
};

}  // namespace polyreme::text
