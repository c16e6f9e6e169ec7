// The public gRPC messages ↔ the engine's requests and pieces. The only place that knows both.
#pragma once

#include <string>
#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::v1 {
class GenerateReply;
class GenerateRequest;
class Prompt;
}  // namespace polyreme::v1

namespace polyreme::api {

// Token ids of a prompt in any of its forms. Tokenizes: not for an I/O thread. InvalidArgument
// naming the field.
absl::StatusOr<std::vector<TokenId>> PromptTokens(const v1::Prompt& prompt,
                                                  const ApiContext& context);

// A valid request. Tokenizes. InvalidArgument naming the field, NotFound for another model.
absl::StatusOr<engine::GenerateRequest> FromProto(const v1::GenerateRequest& request,
                                                  const ApiContext& context);

void ToProto(const engine::OutputPiece& piece, v1::GenerateReply& reply);

}  // namespace polyreme::api
