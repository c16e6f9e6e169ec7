#include "coordinator/sched/block_key.h"

#include <bit>
#include <random>
#include <string_view>

#include "parallel/base/status.h"

namespace polyreme::sched {
namespace {

// First words of what is hashed, so that no root is ever a block's key by construction.
constexpr uint64_t kRootTag = 0;
constexpr uint64_t kBlockTag = 1;

void AddText(SipHash128& hash, std::string_view text) {
  // The length first: where one text ends and the next begins must be part of the key.
  hash.Add(text.size());
  uint64_t word = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    word |= uint64_t{static_cast<uint8_t>(text[i])} << (8 * (i % 8));
    if (i % 8 != 7 && i + 1 != text.size()) continue;
    hash.Add(word);
    word = 0;
  }
}

}  // namespace

SipHash128::SipHash128(const Secret& secret)
    : v0_(secret.k0 ^ 0x736f6d6570736575u),
      v1_(secret.k1 ^ 0x646f72616e646f6du ^ 0xee),
      v2_(secret.k0 ^ 0x6c7967656e657261u),
      v3_(secret.k1 ^ 0x7465646279746573u) {}

void SipHash128::Round() {
  v0_ += v1_;
  v1_ = std::rotl(v1_, 13) ^ v0_;
  v0_ = std::rotl(v0_, 32);
  v2_ += v3_;
  v3_ = std::rotl(v3_, 16) ^ v2_;
  v0_ += v3_;
  v3_ = std::rotl(v3_, 21) ^ v0_;
  v2_ += v1_;
  v1_ = std::rotl(v1_, 17) ^ v2_;
  v2_ = std::rotl(v2_, 32);
}

void SipHash128::Add(uint64_t word) {
  v3_ ^= word;
  Round();
  Round();
  v0_ ^= word;
  num_bytes_ += 8;
}

SipHash128::Digest SipHash128::Finish() {
  const uint64_t length = num_bytes_ << 56;
  v3_ ^= length;
  Round();
  Round();
  v0_ ^= length;
  Digest digest;
  v2_ ^= 0xee;
  for (int i = 0; i < 4; ++i) Round();
  digest.low = v0_ ^ v1_ ^ v2_ ^ v3_;
  v1_ ^= 0xdd;
  for (int i = 0; i < 4; ++i) Round();
  digest.high = v0_ ^ v1_ ^ v2_ ^ v3_;
  return digest;
}

KeyMaker::KeyMaker(const SipHash128::Secret& secret, int32_t tokens_per_block)
    : secret_(secret), tokens_per_block_(tokens_per_block) {
  CHECK(tokens_per_block > 0);
}

SipHash128::Secret KeyMaker::DrawSecret() {
  std::random_device random;
  const auto word = [&] { return uint64_t{random()} << 32 | random(); };
  SipHash128::Secret secret;
  secret.k0 = word();
  secret.k1 = word();
  return secret;
}

BlockKey KeyMaker::Root(const CacheScope& scope) const {
  SipHash128 hash(secret_);
  hash.Add(kRootTag);
  hash.Add(static_cast<uint64_t>(scope.weights_version));
  AddText(hash, scope.adapter);
  AddText(hash, scope.salt);
  return hash.Finish();
}

BlockKey KeyMaker::Next(const BlockKey& previous, absl::Span<const TokenId> tokens) const {
  CHECK(std::ssize(tokens) == tokens_per_block_, "{} tokens of a block of {}", tokens.size(),
        tokens_per_block_);
  SipHash128 hash(secret_);
  hash.Add(kBlockTag);
  hash.Add(previous.low);
  hash.Add(previous.high);
  // Two tokens a word; all blocks are equally long, so an odd one out may be padded.
  for (size_t i = 0; i < tokens.size(); i += 2) {
    uint64_t word = static_cast<uint32_t>(tokens[i]);
    if (i + 1 < tokens.size()) word |= uint64_t{static_cast<uint32_t>(tokens[i + 1])} << 32;
    hash.Add(word);
  }
  return hash.Finish();
}

}  // namespace polyreme::sched
