// The secret that the processes of one job share, and proofs of knowing it that give nothing of it
// away.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace polyreme::launch {

using Nonce = std::array<std::byte, 32>;
using Proof = std::array<std::byte, 32>;

// 256 bits from the system's generator, as 64 hexadecimal digits.
std::string MakeJobToken();
// A number used once: what a proof answers to, so that an old proof is worth nothing.
Nonce MakeNonce();
// HMAC-SHA256 keyed with the token over `role`, a zero byte, and `transcript`. The two sides of a
// connection use different roles, so that neither's proof can be played back as the other's.
Proof Prove(std::string_view job_token, std::string_view role,
            absl::Span<const std::byte> transcript);
// In time that does not depend on where they differ.
bool SameProof(const Proof& a, const Proof& b);

}  // namespace polyreme::launch
