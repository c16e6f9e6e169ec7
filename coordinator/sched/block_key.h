// Names of what a full block of the cache holds: a chained, keyed 128-bit hash.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "parallel/base/ids.h"

namespace polyreme::sched {

// SipHash-2-4 with 128 bits of output, over whole little-endian 64-bit words
// (github.com/veorq/SipHash). Without the secret nobody can choose inputs whose hashes collide, nor
// tell a hash from noise.
class SipHash128 {
 public:
  struct Secret {
    uint64_t k0 = 0;
    uint64_t k1 = 0;
  };
  struct Digest {
    uint64_t low = 0;
    uint64_t high = 0;
    friend bool operator==(const Digest&, const Digest&) = default;
  };

  explicit SipHash128(const Secret& secret);
  void Add(uint64_t word);
  // Once, after the last word.
  Digest Finish();

 private:
  void Round();

  uint64_t v0_, v1_, v2_, v3_;
  uint64_t num_bytes_ = 0;
};

// Tells apart, for all practical purposes, all beginnings of sequences that ever were: see
// docs/decisions/0010.
using BlockKey = SipHash128::Digest;

// What besides its tokens decides what a sequence's blocks hold, and who may share them.
struct CacheScope {
  int64_t weights_version = 0;
  std::string adapter;  // empty: none
  std::string salt;     // the request's cache_salt: sharing ends where salts differ
};

// Pure; any thread.
class KeyMaker {
 public:
  // tokens_per_block > 0.
  KeyMaker(const SipHash128::Secret& secret, int32_t tokens_per_block);
  // A secret from the operating system.
  static SipHash128::Secret DrawSecret();

  int32_t tokens_per_block() const { return tokens_per_block_; }
  // Of the empty beginning.
  BlockKey Root(const CacheScope& scope) const;
  // Of the beginning that has one block more: `tokens` are that block's, all of them.
  BlockKey Next(const BlockKey& previous, absl::Span<const TokenId> tokens) const;

 private:
  SipHash128::Secret secret_;
  int32_t tokens_per_block_;
};

}  // namespace polyreme::sched
