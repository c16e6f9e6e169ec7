// A chat's messages as HTTP has them → token ids of the prompt.
#pragma once

#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/api/fields.h"
#include "parallel/base/ids.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// The messages as templates expect them: content as one string (text parts joined by line ends, as
// vLLM does), the arguments of tool calls as objects. InvalidArgument, naming message and field,
// for what is neither text nor known.
absl::StatusOr<Json> NormalizeMessages(const Json& messages);

// Reads messages, tools, documents, add_generation_prompt, continue_final_message,
// chat_template_kwargs, reasoning_effort and add_special_tokens; renders the model's template;
// tokenizes so that only the template's own text can become special tokens. InvalidArgument, also
// with what the template raises.
absl::StatusOr<std::vector<TokenId>> TokenizeChat(const Fields& fields, const ApiContext& context);

}  // namespace polyreme::api
