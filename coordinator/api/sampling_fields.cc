#include "coordinator/api/sampling_fields.h"

#include <charconv>
#include <variant>

#include "parallel/base/limits.h"

namespace polyreme::api {
namespace {

using engine::GenerateRequest;

constexpr int32_t kMaxTimeoutSeconds = 7 * 24 * 3600;

using Target = std::variant<int32_t GenerateRequest::*, double GenerateRequest::*,
                            bool GenerateRequest::*, std::vector<TokenId> GenerateRequest::*,
                            std::vector<std::string> GenerateRequest::*,
                            std::optional<uint64_t> GenerateRequest::*>;
struct Row {
  std::string_view field;
  Target target;
};
constexpr Row kRequestFields[] = {
    {"n", &GenerateRequest::n},
    {"min_tokens", &GenerateRequest::min_tokens},
    {"ignore_eos", &GenerateRequest::ignore_eos},
    {"stop", &GenerateRequest::stop},
    {"stop_token_ids", &GenerateRequest::stop_token_ids},
    {"include_stop_str_in_output", &GenerateRequest::include_stop_str_in_output},
    {"skip_special_tokens", &GenerateRequest::skip_special_tokens},
    {"temperature", &GenerateRequest::temperature},
    {"top_k", &GenerateRequest::top_k},
    {"top_p", &GenerateRequest::top_p},
    {"min_p", &GenerateRequest::min_p},
    {"repetition_penalty", &GenerateRequest::repetition_penalty},
    {"presence_penalty", &GenerateRequest::presence_penalty},
    {"frequency_penalty", &GenerateRequest::frequency_penalty},
    {"allowed_token_ids", &GenerateRequest::allowed_token_ids},
    {"seed", &GenerateRequest::seed},
    {"prompt_logprobs", &GenerateRequest::prompt_logprobs},
    {"priority", &GenerateRequest::priority},
};

// Known fields without which the answer would be another one. Each row lists the values that change
// nothing.
struct Refusal {
  std::string_view field;
  std::vector<std::string_view> harmless = {};
};
const std::vector<Refusal>& Refusals() {
  static const std::vector<Refusal> refusals = {
      {"suffix", {R"("")"}},
      {"use_beam_search", {"false"}},
      {"length_penalty", {"1", "1.0"}},
      {"bad_words", {"[]"}},
      {"logprob_token_ids", {"[]"}},
      {"truncation_side", {R"("left")"}},
      {"response_format", {R"({"type":"text"})"}},
      {"structured_outputs"},
      {"guided_json"},
      {"guided_regex"},
      {"guided_choice"},
      {"guided_grammar"},
      {"tool_choice", {R"("none")", R"("auto")"}},
      {"functions", {"[]"}},
      {"function_call", {R"("none")", R"("auto")"}},
      {"modalities", {R"(["text"])"}},
      {"audio"},
      {"web_search_options"},
      {"chat_template"},
      {"cache_salt"},
      {"lora_request"},
      {"thinking_token_budget"},
      {"repetition_detection"},
      {"vllm_xargs", {"{}"}},
      {"kv_transfer_params"},
  };
  return refusals;
}

absl::Status ReadLogitBias(const Fields& fields, GenerateRequest& request) {
  const Json* value = fields.Find("logit_bias");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_object()) {
    return WrongValue("logit_bias", "an object of token ids and numbers", *value);
  }
  request.logit_bias.clear();
  for (const Json::Member& member : value->members()) {
    TokenId token = 0;
    const char* end = member.first.data() + member.first.size();
    const auto [parsed_to, error] = std::from_chars(member.first.data(), end, token);
    if (error != std::errc() || parsed_to != end) {
      return WrongValue("logit_bias", "token ids as keys", Json(member.first));
    }
    if (!member.second.is_number())
      return WrongValue("logit_bias", "numbers as values", member.second);
    request.logit_bias.emplace_back(token, member.second.as_double());
  }
  return absl::OkStatus();
}

absl::Status ReadStreaming(const Fields& fields, GenerationCall& call) {
  bool stream = false;
  RETURN_IF_ERROR(fields.Read("stream", stream));
  if (stream) call.delivery = Delivery::kStream;
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return absl::OkStatus();
  if (!stream) return WrongValue("stream_options", "it only together with stream", *options);
  ASSIGN_OR_RETURN(const Fields inner, Fields::Of(*options, "stream_options"));
  bool in_the_end = false;
  bool in_each_chunk = false;
  RETURN_IF_ERROR(inner.Read("include_usage", in_the_end));
  RETURN_IF_ERROR(inner.Read("continuous_usage_stats", in_each_chunk));
  if (in_the_end) call.usage = in_each_chunk ? UsageInStream::kEachChunk : UsageInStream::kLast;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTimeout(const Fields& fields, const Clock& clock, GenerateRequest& request) {
  const Json* value = fields.Find("timeout");
  if (value == nullptr) return absl::OkStatus();
  double seconds = 0;
  RETURN_IF_ERROR(fields.Read("timeout", seconds));
  if (!(seconds > 0 && seconds <= kMaxTimeoutSeconds)) {
    return WrongValue("timeout", fmt::format("seconds above 0, at most {}", kMaxTimeoutSeconds),
                      *value);
  }
  request.deadline = clock.Now() + absl::Seconds(seconds);
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(const Fields& fields) {
  for (const Refusal& refusal : Refusals()) {
    const Json* value = fields.Find(refusal.field);
    if (value == nullptr) continue;
    bool is_harmless = false;
    for (const std::string_view text : refusal.harmless) is_harmless |= value->Dump() == text;
    if (!is_harmless) {
      return WrongValue(refusal.field, "it to be absent, since this server does not support it",
                        *value);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadCommonFields(const Fields& fields, GenerationCall& call,
                              GenerateRequest& request) {
  for (const Row& row : kRequestFields) {
    RETURN_IF_ERROR(std::visit([&](auto member) { return fields.Read(row.field, request.*member); },
                               row.target));
  }
  RETURN_IF_ERROR(ReadLogitBias(fields, request));
  RETURN_IF_ERROR(ReadStreaming(fields, call));
  RETURN_IF_ERROR(fields.Read("return_token_ids", call.returns_token_ids));
  RETURN_IF_ERROR(fields.Read("return_tokens_as_token_ids", call.names_tokens_by_id));
  call.shows_prompt_logprobs = request.prompt_logprobs >= 0;
  if (call.shows_prompt_logprobs && call.delivery == Delivery::kStream) {
    return InvalidArgument("prompt_logprobs: expected it only without stream, got {}",
                           request.prompt_logprobs);
  }
  int32_t best_of = request.n;
  RETURN_IF_ERROR(fields.Read("best_of", best_of));
  if (best_of != request.n) {
    return InvalidArgument("best_of: expected it to equal n ({}), got {}", request.n, best_of);
  }
  return RefuseUnsupported(fields);
}

}  // namespace polyreme::api
