#include "coordinator/api/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace polyreme::api {

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) hashes_.push_back(HashOf(key));
}

ApiKeys::Hash ApiKeys::HashOf(std::string_view key) {
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

bool ApiKeys::Opens(std::string_view authorization) const {
  if (!required()) return true;
  constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() < kBearer.size()) return false;
  for (size_t i = 0; i < kBearer.size(); ++i) {
    if ((authorization[i] | 0x20) != kBearer[i]) return false;
  }
  const Hash given = HashOf(authorization.substr(kBearer.size()));
  bool opens = false;
  for (const Hash& hash : hashes_) {
    opens |= CRYPTO_memcmp(hash.data(), given.data(), hash.size()) == 0;
  }
  return opens;
}

}  // namespace polyreme::api
