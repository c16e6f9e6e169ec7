// What the public faces need: an engine behind a door narrow enough to script in a test, and what
// the model is.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"
#include "coordinator/engine/metrics.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "parallel/base/clock.h"
#include "parallel/base/status.h"

namespace polyreme::text {
class ChatTemplate;
class Tokenizer;
}  // namespace polyreme::text

namespace polyreme::api {

class IdempotencyStore;
class TaskPool;

class GenerationBackend {
 public:
  virtual ~GenerationBackend() = default;
  // As engine::Engine::Submit.
  virtual absl::StatusOr<std::shared_ptr<engine::TokenStream>> Submit(
      engine::GenerateRequest request) = 0;
  // As engine::Engine::CheckRoom.
  virtual absl::Status CheckRoom() const { return absl::OkStatus(); }
  virtual engine::EngineHealth health() const = 0;
};

// The engine itself; borrowed.
class EngineBackend final : public GenerationBackend {
 public:
  explicit EngineBackend(engine::Engine& engine) : engine_(engine) {}
  absl::StatusOr<std::shared_ptr<engine::TokenStream>> Submit(
      engine::GenerateRequest request) override {
    return engine_.Submit(std::move(request));
  }
  absl::Status CheckRoom() const override { return engine_.CheckRoom(); }
  engine::EngineHealth health() const override { return engine_.health(); }

 private:
  engine::Engine& engine_;
};

struct ModelInfo {
  engine::ModelLimits limits;            // limits.model_name is what answers say
  std::vector<std::string> other_names;  // names that requests may use as well
  engine::GenerateRequest
      defaults;         // sampling of requests that do not say (generation_config.json)
  std::string version;  // of this program
};

// All that routes use; immutable while they run. Everything is borrowed.
struct ApiContext {
  GenerationBackend& backend;
  const text::Tokenizer& tokenizer;
  const text::ChatTemplate* chat_template;  // nullptr: the model has none, and chats are refused
  const ModelInfo& model;
  engine::Metrics& metrics;
  const Clock& clock;
  TaskPool& pool;
  IdempotencyStore& idempotency;
};

}  // namespace polyreme::api
