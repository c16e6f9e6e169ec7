// OpenAI's request bodies, with vLLM's additions, as calls to the engine. Fields of neither are
// passed over, as both do; known ones that this server cannot honour are refused by name, since
// ignoring them would change the answer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/api/fields.h"
#include "coordinator/engine/request.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::api {

enum class Face { kCompletion, kChat };
enum class Delivery { kWhole, kStream };
enum class UsageInStream { kNone, kLast, kEachChunk };

// Everything that one HTTP request asks for.
struct GenerationCall {
  Face face = Face::kCompletion;
  Delivery delivery = Delivery::kWhole;
  UsageInStream usage = UsageInStream::kNone;
  std::vector<engine::GenerateRequest> requests = {};  // one per prompt, valid; each has the same n
  std::vector<std::string> echoes = {};  // one per prompt if prompts are to be echoed, else empty
  int32_t num_top_logprobs = -1;         // of the logprobs object; -1: none
  bool shows_prompt_logprobs = false;    // vLLM's field, besides those of an echo
  bool returns_token_ids = false;
  bool names_tokens_by_id = false;  // "token_id:123" instead of text
};

// `request_id` names the call in logs. Tokenizes: not for a socket's thread.
// Errors: InvalidArgument naming the field, NotFound for another model's name.
absl::StatusOr<GenerationCall> ParseCompletion(const Json& body, const std::string& request_id,
                                               const ApiContext& context);
absl::StatusOr<GenerationCall> ParseChat(const Json& body, const std::string& request_id,
                                         const ApiContext& context);

// NotFound unless `name` is empty or one of the model's names; the same for a body's field.
absl::Status CheckModelName(const std::string& name, const ModelInfo& model);
absl::Status CheckModel(const Fields& fields, const ModelInfo& model);

}  // namespace polyreme::api
