// One piece of a rendered chat: what the template itself wrote, or what came from a message.
#pragma once

#include <string>

namespace polyreme::text {

struct Segment {
  std::string text;
  // True for text of the template, where special tokens are meant. False for text of a message's
  // content, where
  // "<|im_end|>" is ten characters and never the end of a turn.
  bool is_literal_template = false;
};

}  // namespace polyreme::text
