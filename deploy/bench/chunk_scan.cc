#include "deploy/bench/chunk_scan.h"

#include <cstddef>

namespace polyreme::bench {
namespace {

// Walks over JSON text that may be anything.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  void SkipSpace() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n' || rest_[0] == '\t')) {
      rest_.remove_prefix(1);
    }
  }
  bool TakeString(std::string_view& value) {
    SkipSpace();
    if (!rest_.starts_with('"')) return false;
    for (size_t at = 1;; ++at) {
      at = rest_.find_first_of("\"\\", at);
      if (at == std::string_view::npos) return false;
      if (rest_[at] == '\\') {
        ++at;
        continue;
      }
      value = rest_.substr(1, at - 1);
      rest_.remove_prefix(at + 1);
      return true;
    }
  }
  bool Take(char c) {
    SkipSpace();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool TakeNull() {
    SkipSpace();
    if (!rest_.starts_with("null")) return false;
    rest_.remove_prefix(4);
    return true;
  }
  // A comma, or a byte of a number or a literal.
  bool TakeOther() {
    if (rest_.empty() || rest_[0] == '"') return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool done() {
    SkipSpace();
    return rest_.empty();
  }

 private:
  std::string_view rest_;
};

}  // namespace

bool IsPlainTextChunk(std::string_view json) {
  Scanner scan(json);
  bool has_text = false;
  bool has_choices = false;
  int depth = 0;
  // A flat walk: keys are told from values by the colon behind them. What a number or a literal
  // looks like does not matter here.
  while (!scan.done()) {
    std::string_view name;
    if (scan.TakeString(name)) {
      if (!scan.Take(':')) continue;
      if (name == "finish_reason" || name == "usage" || name == "error" || name == "tool_calls" ||
          name == "logprobs" || name == "prompt_token_ids") {
        if (!scan.TakeNull()) return false;
      } else if (name == "text" || name == "content") {
        std::string_view value;
        if (!scan.TakeString(value) || value.empty()) return false;
        has_text = true;
      } else if (name == "choices") {
        has_choices = true;
      }
    } else if (scan.Take('{') || scan.Take('[')) {
      ++depth;
    } else if (scan.Take('}') || scan.Take(']')) {
      if (--depth < 0) return false;
    } else if (!scan.TakeOther()) {
      return false;
    }
  }
  return depth == 0 && has_text && has_choices;
}

}  // namespace polyreme::bench
