#include "parallel/launch/job_token.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <vector>

#include "parallel/base/status.h"

namespace polyreme::launch {

Nonce MakeNonce() {
  Nonce nonce;
  const int made =
      RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(nonce.size()));
  CHECK(made == 1, "the system's random generator failed");
  return nonce;
}

std::string MakeJobToken() {
  std::string token;
  for (const std::byte b : MakeNonce()) token += fmt::format("{:02x}", std::to_integer<int>(b));
  return token;
}

Proof Prove(std::string_view job_token, std::string_view role,
            absl::Span<const std::byte> transcript) {
  std::vector<unsigned char> message(role.begin(), role.end());
  message.push_back(0);
  for (const std::byte b : transcript) message.push_back(std::to_integer<unsigned char>(b));
  Proof proof;
  unsigned int size = 0;
  const void* made =
      HMAC(EVP_sha256(), job_token.data(), static_cast<int>(job_token.size()), message.data(),
           message.size(), reinterpret_cast<unsigned char*>(proof.data()), &size);
  CHECK(made != nullptr && size == proof.size(), "HMAC-SHA256 failed");
  return proof;
}

bool SameProof(const Proof& a, const Proof& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace polyreme::launch
