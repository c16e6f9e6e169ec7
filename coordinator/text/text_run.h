// Text that knows which of its bytes the chat template wrote and which came from a message.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace polyreme::text {

enum class TextKind : uint8_t {
  kTemplate,  // special tokens are recognised: what a template wrote, or a prompt as it came
  kContent,   // special tokens are text: what a message says
};

// Runs in order, without gaps, none empty, neighbours of different kinds.
struct RunText {
  struct Run {
    size_t end = 0;  // where the next one begins
    TextKind kind = TextKind::kTemplate;
  };
  std::string text;
  std::vector<Run> runs;

  void Append(std::string_view more, TextKind kind) {
    if (more.empty()) return;
    text += more;
    if (runs.empty() || runs.back().kind != kind) runs.push_back({0, kind});
    runs.back().end = text.size();
  }

  // The part [begin, end), which must lie within the text.
  RunText Slice(size_t begin, size_t end) const {
    RunText slice;
    const auto is_before = [](const Run& run, size_t position) { return run.end <= position; };
    auto run = std::lower_bound(runs.begin(), runs.end(), begin, is_before);
    while (begin < end) {
      const size_t stop = std::min(run->end, end);
      slice.Append(std::string_view(text).substr(begin, stop - begin), run->kind);
      begin = stop;
      ++run;
    }
    return slice;
  }
};

}  // namespace polyreme::text
