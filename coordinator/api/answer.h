// Builds the answer to one call from the engine's pieces: chunks for a stream, or the whole at the
// end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/api/openai_json.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/engine/token_stream.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// No thread of its own, no I/O; one owner.
class Answer {
 public:
  // `call` borrowed. `http_id` is the request's id, which the answer's id is made of.
  Answer(const GenerationCall& call, const std::string& http_id, const ApiContext& context);

  // Takes a piece of prompt number `prompt`. Under kStream, appends the events it gives to
  // `events`.
  void Add(size_t prompt, engine::OutputPiece piece, std::string& events);
  // Events behind the last piece: usage if asked for, and [DONE].
  void AppendEnd(std::string& events) const;
  // The whole answer, when all pieces have been added. The first error of a choice, if one has
  // failed.
  absl::StatusOr<Json> Whole() const;

 private:
  struct PromptState {
    std::vector<engine::TokenScore> scores;
    int64_t num_cached_tokens = 0;
  };
  struct Choice {
    bool has_begun = false;
    std::string text;
    std::vector<TokenId> tokens;
    std::vector<engine::TokenScore> scores;
    int64_t num_tokens = 0;
    int64_t text_offset = 0;
    engine::FinishReason finish = engine::FinishReason::kNone;
    Json stop_reason;
    absl::Status error;
  };

  void AppendEvents(size_t prompt, size_t index, const engine::OutputPiece& piece,
                    std::string& events);
  Json ChunkChoice(size_t prompt, size_t index, const engine::OutputPiece& piece);
  Json WholeChoice(size_t prompt, size_t index) const;
  // What is around the choices, of a chunk as of the whole: id, object, created, model, usage of a
  // stream.
  Json Envelope(std::string_view object, Json choices) const;
  enum class PromptScores { kIncluded, kLeftOut };
  Json Logprobs(size_t prompt, PromptScores of_prompt, std::span<const engine::TokenScore> scores,
                int64_t& offset) const;
  Usage CountUsage() const;
  std::string_view ChunkObject() const;

  const GenerationCall& call_;
  const ApiContext& context_;
  const TokenNames names_;
  const std::string id_;
  const int64_t created_;
  const size_t choices_per_prompt_;
  std::vector<PromptState> prompts_;
  std::vector<Choice> choices_;  // of the first prompt, then of the second, ...
};

}  // namespace polyreme::api
