#include "coordinator/api/openai_routes.h"

#include <algorithm>
#include <string>
#include <utility>

#include "coordinator/api/api_error.h"
#include "coordinator/api/chat_prompt.h"
#include "coordinator/api/fields.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/idempotency.h"
#include "coordinator/api/openai_json.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/api/task_pool.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

using Parse = absl::StatusOr<GenerationCall> (*)(const Json&, const std::string&,
                                                 const ApiContext&);
using Compute = absl::StatusOr<Json> (*)(const Json&, const ApiContext&);
using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpResponder>)>;

void SendOrCut(HttpResponder& responder, const absl::Status& error) {
  if (!WithinMemory([&] { responder.Send(ErrorResponse(error)); }).ok()) responder.Cut();
}

// Runs `work` on the pool; its error is the answer, and so is a full pool.
void RunOnPool(
    const ApiContext& context, HttpRequest request, std::shared_ptr<HttpResponder> responder,
    std::function<absl::Status(const HttpRequest&, std::shared_ptr<HttpResponder>)> work) {
  // A task is copied into its queue: what it carries is shared.
  auto carried = std::make_shared<HttpRequest>(std::move(request));
  const absl::Status queued =
      context.pool.TryRun([&context, carried, responder, work = std::move(work)] {
        const absl::Status done = WithinMemory([&] { return work(*carried, responder); });
        if (done.ok()) return;
        const char* reason = absl::IsUnavailable(done) ? "unavailable" : "invalid";
        WithinMemory([&] { context.metrics.RequestRefused(reason); }).IgnoreError();
        SendOrCut(*responder, done);
      });
  if (queued.ok()) return;
  context.metrics.RequestRefused("full");
  responder->Send(ErrorResponse(queued));
}

absl::StatusOr<Json> ParseBody(const HttpRequest& request) {
  absl::StatusOr<Json> body = Json::Parse(request.body, {.values_max = limits::kMaxHttpJsonValues});
  if (!body.ok()) return Annotate(body.status(), "body");
  return body;
}

absl::Status Generate(const ApiContext& context, Parse parse, const HttpRequest& request,
                      std::shared_ptr<HttpResponder> responder) {
  ASSIGN_OR_RETURN(const Json body, ParseBody(request));
  ASSIGN_OR_RETURN(GenerationCall call, parse(body, request.id, context));
  RunGeneration(context, std::move(call), request.id, std::move(responder));
  return absl::OkStatus();
}

Handler Generates(const ApiContext& context, Parse parse) {
  return [&context, parse](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    // An answer that is there already is had from a full server too.
    if (context.idempotency.Rejoin(request, responder)) return;
    // Who cannot be taken is told before anybody reads what he asks for.
    if (const absl::Status room = context.backend.CheckRoom(); !room.ok()) {
      return responder->Send(ErrorResponse(room));
    }
    RunOnPool(context, std::move(request), std::move(responder),
              [&context, parse](const HttpRequest& carried,
                                const std::shared_ptr<HttpResponder>& client) -> absl::Status {
                const auto answer = context.idempotency.Admit(carried, client);
                if (answer == nullptr) return absl::OkStatus();
                absl::Status started =
                    WithinMemory([&] { return Generate(context, parse, carried, answer); });
                // Others may wait for it under the same key.
                if (!started.ok() && answer != client) SendOrCut(*answer, started);
                return started;
              });
  };
}

Handler Computes(const ApiContext& context, Compute compute) {
  return [&context, compute](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    RunOnPool(context, std::move(request), std::move(responder),
              [&context, compute](const HttpRequest& carried,
                                  std::shared_ptr<HttpResponder> answer) -> absl::Status {
                ASSIGN_OR_RETURN(const Json body, ParseBody(carried));
                ASSIGN_OR_RETURN(const Json result, compute(body, context));
                answer->Send({.body = result.Dump()});
                return absl::OkStatus();
              });
  };
}

Json ModelJson(const std::string& name, const ApiContext& context) {
  return Json::MakeObject({{"id", name},
                           {"object", "model"},
                           {"created", absl::ToUnixSeconds(context.clock.Now())},
                           {"owned_by", "polyreme"},
                           {"root", context.model.limits.model_name},
                           {"parent", nullptr},
                           {"max_model_len", context.model.limits.max_model_len}});
}

std::vector<std::string> ModelNames(const ModelInfo& model) {
  std::vector<std::string> names = {model.limits.model_name};
  names.insert(names.end(), model.other_names.begin(), model.other_names.end());
  return names;
}

Handler ListsModels(const ApiContext& context) {
  return [&context](const HttpRequest&, const std::shared_ptr<HttpResponder>& responder) {
    Json models = Json::MakeArray();
    for (const std::string& name : ModelNames(context.model))
      models.Append(ModelJson(name, context));
    responder->Send(
        {.body = Json::MakeObject({{"object", "list"}, {"data", std::move(models)}}).Dump()});
  };
}

Handler ShowsModel(const ApiContext& context) {
  return [&context](const HttpRequest& request, const std::shared_ptr<HttpResponder>& responder) {
    constexpr std::string_view kPrefix = "/v1/models/";
    const std::optional<std::string> name =
        PercentDecode(std::string_view(request.path).substr(kPrefix.size()));
    const std::vector<std::string> names = ModelNames(context.model);
    if (!name.has_value() || std::find(names.begin(), names.end(), *name) == names.end()) {
      return responder->Send(
          ErrorResponse(404, fmt::format("model: expected '{}'", context.model.limits.model_name)));
    }
    responder->Send({.body = ModelJson(*name, context).Dump()});
  };
}

absl::StatusOr<std::vector<TokenId>> TokensOf(const Fields& fields, const ApiContext& context) {
  if (fields.Find("messages") != nullptr) return TokenizeChat(fields, context);
  const Json* prompt = fields.Find("prompt");
  if (prompt == nullptr || !prompt->is_string()) {
    return WrongValue("prompt", "a string, or messages instead",
                      prompt == nullptr ? Json() : *prompt);
  }
  bool adds_special_tokens = true;
  RETURN_IF_ERROR(fields.Read("add_special_tokens", adds_special_tokens));
  text::EncodeOptions options;
  if (!adds_special_tokens) options.around = text::SpecialTokensAround::kLeftOut;
  absl::StatusOr<std::vector<TokenId>> tokens =
      context.tokenizer.Encode(prompt->as_string(), options);
  if (!tokens.ok()) return Annotate(tokens.status(), "prompt");
  return tokens;
}

absl::StatusOr<Json> Tokenize(const Json& body, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(body));
  RETURN_IF_ERROR(CheckModel(fields, context.model));
  bool returns_strings = false;
  RETURN_IF_ERROR(fields.Read("return_token_strs", returns_strings));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensOf(fields, context));
  Json result = Json::MakeObject({{"count", static_cast<int64_t>(tokens.size())},
                                  {"max_model_len", context.model.limits.max_model_len},
                                  {"tokens", TokenIdsJson(tokens)},
                                  {"token_strs", nullptr}});
  if (!returns_strings) return result;
  Json strings = Json::MakeArray();
  for (const TokenId token : tokens) {
    const std::string* spelling = context.tokenizer.IdToToken(token);
    strings.Append(spelling == nullptr ? std::string() : *spelling);
  }
  result.Set("token_strs", std::move(strings));
  return result;
}

absl::StatusOr<Json> Detokenize(const Json& body, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(body));
  RETURN_IF_ERROR(CheckModel(fields, context.model));
  if (fields.Find("tokens") == nullptr)
    return WrongValue("tokens", "an array of token ids", Json());
  std::vector<TokenId> tokens;
  RETURN_IF_ERROR(fields.Read("tokens", tokens));
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= context.model.limits.vocabulary) {
      return InvalidArgument("tokens[{}]: expected a token id below {}, got {}", i,
                             context.model.limits.vocabulary, tokens[i]);
    }
  }
  return Json::MakeObject(
      {{"prompt", context.tokenizer.Decode(tokens, text::SpecialTokensInOutput::kKept)}});
}

}  // namespace

std::vector<Route> OpenAiRoutes(const ApiContext& context) {
  return {
      {.method = "POST", .path = "/v1/completions", .handle = Generates(context, ParseCompletion)},
      {.method = "POST", .path = "/v1/chat/completions", .handle = Generates(context, ParseChat)},
      {.method = "GET", .path = "/v1/models", .handle = ListsModels(context)},
      {.method = "GET", .path = "/v1/models/*", .handle = ShowsModel(context)},
      {.method = "POST", .path = "/tokenize", .handle = Computes(context, Tokenize)},
      {.method = "POST", .path = "/detokenize", .handle = Computes(context, Detokenize)},
  };
}

}  // namespace polyreme::api
