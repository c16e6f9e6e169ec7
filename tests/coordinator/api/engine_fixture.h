// The faces over the real engine, whose workers are a link of the test's choice.
#pragma once

#include <memory>
#include <utility>

#include "coordinator/engine/engine.h"
#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {

// Link: a WorkerLink made from step::StepLimits.
template <class Link>
class EngineApiTest : public ApiTest {
 protected:
  static engine::EngineOptions Options(int32_t num_blocks) {
    engine::EngineOptions options;
    options.limits = {.num_slots = 4,
                      .num_blocks = num_blocks,
                      .tokens_per_block = 4,
                      .max_step_tokens = 64,
                      .max_step_samples = 64,
                      .max_model_len = 200,
                      .vocabulary = 262,
                      .max_steps_in_flight = 2};
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 64;
    options.max_waiting = 8;
    options.seed = 1;
    return options;
  }

  explicit EngineApiTest(int32_t num_blocks)
      : link_(Options(num_blocks).limits),
        engine_(Options(num_blocks), TestModel().limits, link_, *tokenizer_, clock_, metrics_),
        engine_backend_(engine_) {
    engine_.Start();
    const PublicServerParts parts{.backend = engine_backend_,
                                  .tokenizer = *tokenizer_,
                                  .chat_template = &*chat_,
                                  .model = TestModel(),
                                  .metrics = metrics_,
                                  .clock = clock_};
    absl::StatusOr<std::unique_ptr<PublicServer>> server = PublicServer::Start({}, parts);
    CHECK(server.ok(), "{}", Message(server.status()));
    server_ = *std::move(server);
    port_ = server_->bound_port();
  }
  ~EngineApiTest() override {
    server_.reset();
    engine_.Stop();
  }

  Link link_;
  engine::Engine engine_;
  EngineBackend engine_backend_;
};

}  // namespace polyreme::api
