// Splits a template into data and the tokens of its tags, with Jinja's rules for white space:
// trim_blocks and lstrip_blocks on, as Transformers has them, and the signs `-` and `+`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::text::jinja {

struct Token {
  enum class Kind {
    kData,  // text between tags
    kOutputBegin,
    kOutputEnd,  // {{ }}
    kBlockBegin,
    kBlockEnd,  // {% %}
    kName,
    kString,
    kInteger,
    kFloat,
    kPunctuation,  // operators and brackets, in text
    kEnd,
  };
  Kind kind = Kind::kEnd;
  int line = 1;
  std::string text;  // of a string: its value, escapes resolved
  int64_t integer = 0;
  double number = 0;
};

// Tokens of the whole source, the last one kEnd. InvalidArgument with the line.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace polyreme::text::jinja
