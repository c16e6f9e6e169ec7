// Errors as OpenAI's and vLLM's clients expect them: {"error": {"message", "type", "param",
// "code"}}.
#pragma once

#include <cstdint>
#include <string_view>

#include "coordinator/api/http_message.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// The HTTP code of a failed request: 400 for InvalidArgument, 404 NotFound, 429 ResourceExhausted,
// 401 Unauthenticated, 503 Unavailable, 504 DeadlineExceeded, 501 Unimplemented, 500 otherwise.
int32_t HttpCode(const absl::Status& status);

// 4xx, 503, 504: refused, or ended by a deadline or a server that stops. Asking again may well give
// an answer, where any other error is what the request's run came to.
bool IsPassing(int32_t code);

// The value of the member "error". A message that begins "field: " names that field as param.
Json ErrorJson(int32_t code, std::string_view message);
Json ErrorJson(const absl::Status& status);

// The whole answer. 429 and 503 carry Retry-After. The text of an internal error stays in the log:
// the client reads that there was one.
HttpResponse ErrorResponse(int32_t code, std::string_view message);
HttpResponse ErrorResponse(const absl::Status& status);

}  // namespace polyreme::api
