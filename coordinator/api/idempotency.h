// Idempotency-Key (the IETF draft of that name): a request that comes again under its key gets the
// answer of the first, running or finished, and is never run twice.
//
//   same key, same body    joins the running answer, or has it again, from its beginning
//   same key, other body   422
//   no room for a key      429
// Keys belong to the API key they came with. Answers live in this process only: after its end a key
// runs its request again. docs/decisions/0012-idempotency-keys.md
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "coordinator/api/http_message.h"
#include "coordinator/api/http_server.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::api {

struct IdempotencyOptions {
  int32_t max_keys = limits::kMaxIdempotencyKeys;
  int64_t max_bytes = limits::kMaxKeptAnswersBytes;        // of all answers
  int64_t max_answer_bytes = limits::kMaxKeptAnswerBytes;  // of one; a larger one is not kept
  // Of an answer since its end, and of a generation since its last client has left.
  absl::Duration ttl = limits::kIdempotencyTtl;
};

// The key of a header's value: a structured-field string ("..." with \" and \\), or, as most
// clients write it, the characters themselves. InvalidArgument: empty, too long, or other than
// visible ASCII and inner spaces.
absl::StatusOr<std::string> ParseIdempotencyKey(std::string_view value);

// Any thread. When room is needed, the answers that ended first go first.
class IdempotencyStore {
 public:
  // clock borrowed.
  IdempotencyStore(const IdempotencyOptions& options, const Clock& clock);
  // Cancels what runs; the server has stopped.
  ~IdempotencyStore();

  // The responder that the request is to be answered through: `client` itself if it has no key.
  // nullptr: the client has its answer, or will have it, without another run.
  std::shared_ptr<HttpResponder> Admit(const HttpRequest& request,
                                       std::shared_ptr<HttpResponder> client);

 private:
  class Impl;
  const std::shared_ptr<Impl> impl_;
};

}  // namespace polyreme::api
