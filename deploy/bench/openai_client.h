// What a client of the OpenAI interface writes and reads, as polyreme, vLLM, SGLang and llama.cpp
// have it. Pure but for AskServer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "deploy/bench/http_url.h"
#include "parallel/base/ids.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// Where requests go and what every one of them says.
struct OpenAiTarget {
  HttpUrl url;
  std::string model;
  std::string api_key;   // empty: none
  bool chat = false;     // /v1/chat/completions instead of /v1/completions
  std::string endpoint;  // empty: the usual path of the two
  bool ignore_eos = false;
  bool include_usage = true;  // ask for the server's own count of tokens
  double temperature = 0;
  Json extra = Json::MakeObject();  // members added to every body

  std::string headers() const;  // lines, for GetRequest and PostRequest
  std::string path() const;
};

using Prompt = std::variant<std::string, std::vector<TokenId>>;

// The body of one streamed generation. InvalidArgument: token ids where only text can be sent.
absl::StatusOr<std::string> GenerationBody(const OpenAiTarget& target, const Prompt& prompt,
                                           int32_t max_tokens);

// What one chunk of a stream says.
struct StreamChunk {
  bool has_text = false;  // of any choice, reasoning included
  std::string finish_reason;
  std::optional<int32_t> prompt_tokens;
  std::optional<int32_t> completion_tokens;
  std::string error;  // the server's message, where it sends one within a stream
};
// `data` of one event. Chunks that only carry text, nearly all of them, are read without building a
// value. InvalidArgument: no chunk of a completion or a chat.
absl::StatusOr<StreamChunk> ReadStreamChunk(std::string_view data);
inline constexpr std::string_view kStreamEnd = "[DONE]";

// The message of an error's body, shortened to a line; of a body that is no such error its start.
std::string ErrorMessage(std::string_view body);

// The models that a server serves.
struct ServedModel {
  std::string id;
  int32_t max_model_len = 0;  // 0: not told
};
absl::StatusOr<std::vector<ServedModel>> ReadModelList(std::string_view body);

// Asks the server what it serves and takes `wanted`, or the first if that is empty. Unavailable:
// nobody answers there; NotFound: the model is not served; each one sentence with the address.
// Blocking, up to `patience`.
absl::StatusOr<ServedModel> AskServer(const OpenAiTarget& target, const std::string& wanted,
                                      absl::Duration patience);

}  // namespace polyreme::bench
