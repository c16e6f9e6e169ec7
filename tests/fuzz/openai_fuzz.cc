// Bodies of the public faces. First byte: which one (completions, chat, gRPC's Generate). Whatever
// is accepted is valid for the engine.
#include "coordinator/api/idempotency.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/api/proto_request.h"
#include "coordinator/api/task_pool.h"
#include "coordinator/text/chat_template.h"
#include "parallel/base/limits.h"
#include "proto/api.pb.h"
#include "tests/coordinator/text_tiny_tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::api {
namespace {

class NoBackend final : public GenerationBackend {
 public:
  absl::StatusOr<std::shared_ptr<engine::TokenStream>> Submit(engine::GenerateRequest) override {
    return Unavailable("nothing runs here");
  }
  engine::EngineHealth health() const override { return {}; }
};

constexpr std::string_view kTemplate =
    "{% for m in messages %}<|end|>{{ m.role }}:{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|end|>{% endif %}";

// All that the parsers borrow.
struct World {
  World() : chat(*text::ChatTemplate::Parse(kTemplate, {})) {
    model.limits.model_name = "tiny";
    model.limits.max_model_len = 200;
    model.limits.vocabulary = 262;
    model.limits.eos_tokens = {260};
    model.limits.max_choices = 8;
    model.limits.max_logprobs = 5;
    model.limits.allows_priority = true;
  }
  NoBackend backend;
  std::unique_ptr<const text::Tokenizer> tokenizer = text::LoadOrDie(text::TinyTokenizerJson());
  text::ChatTemplate chat;
  ModelInfo model;
  engine::Metrics metrics{"tiny", engine::Metrics::Names::kOwn};
  SystemClock clock;
  TaskPool pool{1, 1};
  IdempotencyStore idempotency{{}, clock, metrics};
  ApiContext context{backend, *tokenizer, &chat, model, metrics, clock, pool, idempotency};
};

void CheckRequest(const engine::GenerateRequest& request, const World& world) {
  CHECK(engine::Validate(request, world.model.limits).ok());
  CHECK(!request.prompt.empty());
  CHECK(std::ssize(request.prompt) < world.model.limits.max_model_len);
  for (const TokenId token : request.prompt) CHECK(token >= 0 && token < 262);
}

void TryJson(Face face, std::string_view text, const World& world) {
  const absl::StatusOr<Json> body = Json::Parse(text);
  if (!body.ok()) return fuzz::CheckRefusal(body.status());
  const absl::StatusOr<GenerationCall> call = face == Face::kChat
                                                  ? ParseChat(*body, "r", world.context)
                                                  : ParseCompletion(*body, "r", world.context);
  if (!call.ok()) return fuzz::CheckRefusal(call.status());
  CHECK(!call->requests.empty());
  CHECK(call->requests.size() <= size_t{limits::kMaxPrompts});
  CHECK(call->echoes.empty() || call->echoes.size() == call->requests.size());
  for (const engine::GenerateRequest& request : call->requests) CheckRequest(request, world);
}

void TryProto(std::string_view bytes, const World& world) {
  v1::GenerateRequest message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  const absl::StatusOr<engine::GenerateRequest> request = FromProto(message, world.context);
  if (!request.ok()) return fuzz::CheckRefusal(request.status());
  CheckRequest(*request, world);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const World world;
  if (size == 0) return 0;
  const std::string_view text = polyreme::fuzz::AsText(data + 1, size - 1);
  if (data[0] % 3 == 2) {
    TryProto(text, world);
  } else {
    TryJson(data[0] % 3 == 1 ? Face::kChat : Face::kCompletion, text, world);
  }
  return 0;
}

}  // namespace polyreme::api
