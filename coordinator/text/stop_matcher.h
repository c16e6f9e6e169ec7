// Finds stop strings in text as it comes, wherever it is cut.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::text {

// Which stop string ended the text, and where: bytes [begin, end) of all text pushed so far.
struct StopMatch {
  int32_t stop_index = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// Walks all stop strings at once (Knuth, Morris and Pratt's automaton for each). The first to be
// complete wins; of several that end at the same byte, the longest. So the result does not depend
// on how the text was cut into pieces. Text that may be the beginning of a stop string is held
// back: at most the longest stop string less one byte, and never part of a character. Its state
// follows from the text pushed. Copyable; one thread at a time.
class StopMatcher {
 public:
  // InvalidArgument for more than limits::kMaxStopStrings strings, or one that is empty, longer
  // than limits::kMaxStopStringBytes, or no UTF-8. No strings at all: nothing is found and nothing
  // held back.
  static absl::StatusOr<StopMatcher> Make(std::vector<std::string> stops);

  // Takes whole characters and appends to `shown` what can be shown now. If a stop string is
  // complete, `shown` ends in front of it, the rest of `text` is dropped, and nothing may be pushed
  // any more; who wants the stop string in the output appends stops()[stop_index].
  std::optional<StopMatch> Push(std::string_view text, std::string& shown);

  // The same where no stop may be yet (min_tokens): a stop string that is complete within this text
  // is no match, one that begins here and ends in a later Push is.
  void PushUnmatched(std::string_view text, std::string& shown);

  // The end without a stop: appends what was held back.
  void Flush(std::string& shown);

  const std::vector<std::string>& stops() const { return stops_; }

 private:
  explicit StopMatcher(std::vector<std::string> stops);
  std::optional<StopMatch> Advance(char byte);
  void Show(int64_t end, std::string& shown);
  int64_t FirstHeldBack() const;

  std::vector<std::string> stops_;
  // borders_[i][n]: the longest proper beginning of stop i's first n bytes that is also their end.
  std::vector<std::vector<int32_t>> borders_;
  std::vector<int32_t> matched_;  // of each stop: how many of its bytes the text ends in
  int64_t num_pushed_ = 0;
  std::string held_back_;
};

}  // namespace polyreme::text
