// A line on standard error that says how far long work is: rewritten in place on a terminal,
// otherwise a new one now and then.
#pragma once

#include <cstdint>
#include <string>

namespace polyreme::bench {

class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();  // takes the line away
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(const std::string& text);

 private:
  const bool is_terminal_;
  int64_t shown_ns_ = 0;
  bool is_open_ = false;
};

}  // namespace polyreme::bench
