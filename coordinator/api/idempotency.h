// Idempotency-Key (the IETF draft of that name): a request that comes again under its key gets the
// answer of the first, running or finished, and is never run twice.
//
//   same key, same body    joins the running answer, or has it again, from its beginning
//   same key, other body   422
//   no room for a key      429
// What says nothing of the request's run (4xx, 503, 504) leaves the key free. Keys belong to the
// API key they came with. Answers live in this process only: after its end a key runs its request
// again. docs/decisions/0012-idempotency-keys.md
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

namespace polyreme::engine {
class Metrics;
}

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

// A request that came with a key, whatever face it came through.
struct KeyedRequest {
  std::string id;           // IdOfKey
  std::string fingerprint;  // FingerprintOf all that must be the same for two requests to be one
  std::string overflow;     // the bytes that end a stream which outgrows what is kept
};

// A key is looked up together with who it came from: the value of `authorization`, or "".
std::string IdOfKey(std::string_view authorization, std::string_view key);
std::string FingerprintOf(std::string_view path, std::string_view query, std::string_view body);
// What ends a stream that outgrows what is kept.
absl::Status AnswerTooLargeToKeep();

// Any thread. When room is needed, the answers that ended first go first.
class IdempotencyStore {
 public:
  // clock and metrics borrowed.
  IdempotencyStore(const IdempotencyOptions& options, const Clock& clock, engine::Metrics& metrics);
  // Cancels what runs; the server has stopped.
  ~IdempotencyStore();

  // The responder that the request is to be answered through. nullptr: the client has its answer,
  // or will have it, without another run. AlreadyExists: the key came with another request.
  // FailedPrecondition: its answer was too large to be kept. ResourceExhausted: no room for a key.
  absl::StatusOr<std::shared_ptr<HttpResponder>> Admit(const KeyedRequest& request,
                                                       std::shared_ptr<HttpResponder> client);
  // Whether a key of this id has come before: cheap, where a fingerprint of a long body is not.
  bool Knows(const std::string& id);
  // As Admit for a key that came before; otherwise false, and nothing has happened.
  absl::StatusOr<bool> Rejoin(const KeyedRequest& request,
                              const std::shared_ptr<HttpResponder>& client);

  // The same for HTTP, where a refusal is an answer. Admit: `client` itself if it has no key.
  std::shared_ptr<HttpResponder> Admit(const HttpRequest& request,
                                       std::shared_ptr<HttpResponder> client);
  bool Rejoin(const HttpRequest& request, const std::shared_ptr<HttpResponder>& client);

 private:
  class Impl;
  const std::shared_ptr<Impl> impl_;
};

}  // namespace polyreme::api
