#include "parallel/launch/call_proof.h"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/launch/job_token.h"

namespace polyreme::launch {
namespace {

std::string Hex(absl::Span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

Proof ProveText(std::string_view job_token, std::string_view role, std::string_view text) {
  return Prove(job_token, role,
               absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size()));
}

bool SameText(std::string_view a, std::string_view b) {
  // Constant time in the content; the length of a proof is no secret.
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |=
        static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]));
  }
  return difference == 0;
}

constexpr std::string_view kCallRole = "polyreme-call";
constexpr std::string_view kCoordinatorRole = "polyreme-coordinator";
constexpr size_t kMaxSeen = 1 << 20;

}  // namespace

std::string MakeCallProof(std::string_view job_token, std::string_view method) {
  const std::string nonce = Hex(MakeNonce());
  return nonce + ":" + Hex(ProveText(job_token, kCallRole, fmt::format("{} {}", nonce, method)));
}

absl::Status CallGuard::Check(std::string_view proof, std::string_view method) {
  constexpr size_t kNonceDigits = 2 * sizeof(Nonce);
  if (proof.size() != kNonceDigits + 1 + 2 * sizeof(Proof) || proof[kNonceDigits] != ':') {
    return Unauthenticated("this call carries no proof of the job token");
  }
  const std::string nonce(proof.substr(0, kNonceDigits));
  const std::string expected =
      Hex(ProveText(job_token_, kCallRole, fmt::format("{} {}", nonce, method)));
  if (!SameText(expected, proof.substr(kNonceDigits + 1))) {
    return Unauthenticated("the proof of the job token is wrong: another job, or another token");
  }
  const std::lock_guard lock(mutex_);
  if (seen_.size() >= kMaxSeen)
    return ResourceExhausted("{} calls were made in this job", kMaxSeen);
  if (!seen_.insert(nonce).second) return Unauthenticated("this proof was used before");
  return absl::OkStatus();
}

std::string AnswerChallenge(std::string_view job_token, std::string_view challenge) {
  return Hex(ProveText(job_token, kCoordinatorRole, challenge));
}

}  // namespace polyreme::launch
