// A whole public server on a free port of this host, over an engine that a test scripts piece by
// piece.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "coordinator/api/server.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/bounded_queue.h"
#include "parallel/base/clock.h"
#include "parallel/base/json.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::api {

// Takes requests into a queue, from which a test answers them.
class ScriptedBackend final : public GenerationBackend {
 public:
  struct Submitted {
    engine::GenerateRequest request;
    std::shared_ptr<engine::TokenStream> stream;
  };

  absl::StatusOr<std::shared_ptr<engine::TokenStream>> Submit(
      engine::GenerateRequest request) override {
    {
      const std::lock_guard lock(mutex_);
      RETURN_IF_ERROR(refusal_);
    }
    auto stream = std::make_shared<engine::TokenStream>(
        limits::kTokenStreamCapacity, [this] { cancelled_.TryPush(1).IgnoreError(); });
    RETURN_IF_ERROR(submitted_.TryPush({std::move(request), stream}));
    return stream;
  }
  engine::EngineHealth health() const override {
    const std::lock_guard lock(mutex_);
    return health_;
  }
  void SetHealth(engine::EngineHealth health) {
    const std::lock_guard lock(mutex_);
    health_ = std::move(health);
  }
  void SetServing(bool is_serving, std::string reason = "") {
    SetHealth({.serving = is_serving,
               .reason = std::move(reason),
               .since_progress = absl::ZeroDuration()});
  }

  Submitted Next() {
    absl::StatusOr<Submitted> next = submitted_.Pop(MonotonicNow() + absl::Seconds(10));
    CHECK(next.ok(), "no request reached the engine");
    return *std::move(next);
  }
  bool HasNone() const { return submitted_.size() == 0; }
  bool WaitUntilCancelled() { return cancelled_.Pop(MonotonicNow() + absl::Seconds(10)).ok(); }

  absl::Status CheckRoom() const override {
    const std::lock_guard lock(mutex_);
    return room_;
  }
  // What requests are answered from now on, and what is said of room; ok: they are taken.
  void SetRefusal(absl::Status refusal) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(refusal);
  }
  void SetRoom(absl::Status room) {
    const std::lock_guard lock(mutex_);
    room_ = std::move(room);
  }

 private:
  BoundedQueue<Submitted> submitted_{1024};
  BoundedQueue<int> cancelled_{1024};
  mutable std::mutex mutex_;
  absl::Status refusal_;  // guarded by mutex_, and so on
  absl::Status room_;
  engine::EngineHealth health_{
      .serving = true, .reason = "", .since_progress = absl::ZeroDuration()};
};

inline constexpr std::string_view kTestTemplate =
    "{% for m in messages %}<|end|>{{ m.role }}:{{ m.content }}{% endfor %}"
    "{% if tools %}[{{ tools | length }} tools]{% endif %}"
    "{% if add_generation_prompt %}<|end|>assistant:{% endif %}";

inline ModelInfo TestModel() {
  ModelInfo model;
  model.limits.model_name = "tiny";
  model.limits.max_model_len = 200;
  model.limits.vocabulary = 262;
  model.limits.eos_tokens = {260};
  model.limits.max_choices = 8;
  model.limits.max_logprobs = 5;
  model.other_names = {"org/tiny"};
  model.version = "test";
  return model;
}

class ApiTest : public ::testing::Test {
 protected:
  ApiTest()
      : tokenizer_(text::LoadOrDie(text::TinyTokenizerJson())),
        metrics_("tiny", engine::Metrics::Names::kOwn) {
    absl::StatusOr<text::ChatTemplate> chat = text::ChatTemplate::Parse(kTestTemplate, {});
    CHECK(chat.ok(), "{}", Message(chat.status()));
    chat_ = *std::move(chat);
  }

  void Start(PublicServerOptions options = {}) {
    const PublicServerParts parts{.backend = backend_,
                                  .tokenizer = *tokenizer_,
                                  .chat_template = &*chat_,
                                  .model = TestModel(),
                                  .metrics = metrics_,
                                  .clock = clock_};
    absl::StatusOr<std::unique_ptr<PublicServer>> server = PublicServer::Start(options, parts);
    CHECK(server.ok(), "{}", Message(server.status()));
    server_ = *std::move(server);
    port_ = server_->bound_port();
  }

  // The answer of a POST that needs no engine, parsed.
  std::pair<int32_t, Json> Post(std::string_view path, std::string_view body) {
    return Parsed(Exchange(port_, PostJson(path, body)));
  }
  static std::pair<int32_t, Json> Parsed(const std::optional<RawResponse>& response) {
    CHECK(response.has_value(), "no answer");
    absl::StatusOr<Json> body = Json::Parse(response->body);
    CHECK(body.ok(), "{} in {}", Message(body.status()), response->body);
    return {response->code, *std::move(body)};
  }

  ScriptedBackend backend_;
  std::unique_ptr<const text::Tokenizer> tokenizer_;
  std::optional<text::ChatTemplate> chat_;
  engine::Metrics metrics_;
  SystemClock clock_;
  std::unique_ptr<PublicServer> server_;
  int32_t port_ = 0;
};

// The member at a path such as "choices.0.text"; CHECKs that it is there.
inline const Json& Member(const Json& json, std::string_view path) {
  const Json* at = &json;
  while (!path.empty()) {
    const size_t dot = std::min(path.find('.'), path.size());
    const std::string key(path.substr(0, dot));
    at = at->is_array() ? &at->as_array().at(std::stoul(key)) : at->Find(key);
    CHECK(at != nullptr, "no {} in {}", key, json.Dump());
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return *at;
}

// One token per byte, as the tiny tokenizer has them.
inline engine::OutputPiece Piece(std::string_view text,
                                 engine::FinishReason finish = engine::FinishReason::kNone) {
  engine::OutputPiece piece;
  piece.text = text;
  for (const char c : text) piece.tokens.push_back(static_cast<unsigned char>(c));
  piece.finish = finish;
  return piece;
}

inline engine::TokenScore Score(TokenId token, float logprob,
                                std::vector<step::TokenLogprob> top = {}) {
  return {.token = token, .logprob = logprob, .rank = 1, .top = std::move(top)};
}

}  // namespace polyreme::api
