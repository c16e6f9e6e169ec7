// Messages to prompt, by the chat template that a checkpoint carries: a sandboxed subset of Jinja.
//
// Templates are run, not recognised. One rendering costs a bounded number of steps, bytes and
// nested calls (parallel/base/limits.h); a template or message that wants more is an error, never a
// hang.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/text/segment.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// The prompt as runs of text by who wrote them; no two neighbours are of one kind, none is empty.
struct RenderedChat {
  std::vector<Segment> segments;

  std::string Concat() const;
};

class ChatTemplate {
 public:
  // "bos_token" and the like, with their spelling: text of the template wherever it prints them.
  using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

  // InvalidArgument with the line of what is malformed or not supported.
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source, SpecialTokens special_tokens);

  // Reads the chat template of a checkpoint's directory, nullopt if it has none. In order of trust:
  // chat_template.jinja (with additional_chat_templates/tool_use.jinja), chat_template.json,
  // tokenizer_config.json; the special tokens come from tokenizer_config.json and
  // special_tokens_map.json.
  static absl::StatusOr<std::optional<ChatTemplate>> Load(const std::string& directory);

  // The same, but with the template in a file of the operator's choice.
  static absl::StatusOr<ChatTemplate> LoadFrom(const std::string& template_file,
                                               const std::string& directory);

  // The template to use when a request has tools, if it is another one.
  absl::Status SetToolUse(std::string_view source);

  struct Options {
    bool add_generation_prompt = true;
    const Json* tools = nullptr;      // an array of JSON-schema functions; may be null
    const Json* documents = nullptr;  // may be null
    const Json* extra = nullptr;      // an object: chat_template_kwargs of the request; may be null
    absl::Time now = absl::UnixEpoch();  // what strftime_now() shows
    absl::TimeZone time_zone = absl::UTCTimeZone();
  };

  // `messages` is an array of objects, as HTTP has them: the template sees what is there, nothing
  // added.
  //
  // All strings of messages, tools, documents and extra count as content, wherever the template
  // carries them, except the role of a message if it is one of the well-known ones.
  // InvalidArgument, with the line of the template, for whatever Jinja would raise:
  // raise_exception()'s message comes through. Any thread.
  absl::StatusOr<RenderedChat> Render(const Json& messages, const Options& options) const;

 private:
  struct Program;

  std::shared_ptr<const Program> program_;
  std::shared_ptr<const Program> tool_use_;  // may be null
  SpecialTokens special_tokens_;
};

}  // namespace polyreme::text
