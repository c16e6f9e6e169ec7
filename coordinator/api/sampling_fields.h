// The fields that completions and chats have in common: how to draw, when to stop, how to answer.
#pragma once

#include "coordinator/api/fields.h"
#include "coordinator/api/openai_request.h"

namespace polyreme::api {

// Reads all of them into call and request; checks types only, ranges are engine::Validate's.
absl::Status ReadCommonFields(const Fields& fields, GenerationCall& call,
                              engine::GenerateRequest& request);

// `timeout`, in seconds from now: this server's own field. Sets the request's deadline.
absl::Status ReadTimeout(const Fields& fields, const Clock& clock,
                         engine::GenerateRequest& request);

// Refuses known fields whose value would change the answer and that this server does not have.
absl::Status RefuseUnsupported(const Fields& fields);

}  // namespace polyreme::api
