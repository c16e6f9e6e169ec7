#include "coordinator/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/utf8.h"
#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

std::vector<int32_t> Borders(std::string_view stop) {
  std::vector<int32_t> borders(stop.size() + 1, 0);
  int32_t border = 0;
  for (size_t i = 1; i < stop.size(); ++i) {
    while (border > 0 && stop[i] != stop[border]) border = borders[border];
    if (stop[i] == stop[border]) ++border;
    borders[i + 1] = border;
  }
  return borders;
}

}  // namespace

absl::StatusOr<StopMatcher> StopMatcher::Make(std::vector<std::string> stops) {
  if (std::ssize(stops) > limits::kMaxStopStrings) {
    return InvalidArgument("expected at most {} stop strings, got {}", limits::kMaxStopStrings,
                           stops.size());
  }
  for (const std::string& stop : stops) {
    if (stop.empty() || std::ssize(stop) > limits::kMaxStopStringBytes) {
      return InvalidArgument("expected a stop string of 1 to {} bytes, got {}",
                             limits::kMaxStopStringBytes, stop.size());
    }
    if (FindInvalidUtf8(stop) != std::string_view::npos)
      return InvalidArgument("expected a stop string in UTF-8");
  }
  return StopMatcher(std::move(stops));
}

StopMatcher::StopMatcher(std::vector<std::string> stops)
    : stops_(std::move(stops)), matched_(stops_.size(), 0) {
  for (const std::string& stop : stops_) borders_.push_back(Borders(stop));
}

std::optional<StopMatch> StopMatcher::Push(std::string_view text, std::string& shown) {
  for (size_t i = 0; i < text.size(); ++i) {
    const std::optional<StopMatch> match = Advance(text[i]);
    if (!match) continue;
    held_back_ += text.substr(0, i + 1);
    Show(match->begin, shown);
    held_back_.clear();
    return match;
  }
  held_back_ += text;
  Show(FirstHeldBack(), shown);
  return std::nullopt;
}

void StopMatcher::PushUnmatched(std::string_view text, std::string& shown) {
  for (const char byte : text) Advance(byte);
  held_back_ += text;
  Show(FirstHeldBack(), shown);
}

void StopMatcher::Flush(std::string& shown) {
  Show(num_pushed_, shown);
}

// One byte through all automata. A stop string that is complete goes on with its longest border.
std::optional<StopMatch> StopMatcher::Advance(char byte) {
  ++num_pushed_;
  std::optional<StopMatch> match;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const std::string& stop = stops_[i];
    int32_t& matched = matched_[i];
    while (matched > 0 && stop[matched] != byte) matched = borders_[i][matched];
    if (stop[matched] == byte) ++matched;
    if (matched < std::ssize(stop)) continue;
    const int64_t begin = num_pushed_ - std::ssize(stop);
    if (!match || begin < match->begin)
      match = StopMatch{static_cast<int32_t>(i), begin, num_pushed_};
    matched = borders_[i][matched];
  }
  return match;
}

// Where the longest beginning of a stop string lies that the text ends in.
int64_t StopMatcher::FirstHeldBack() const {
  return num_pushed_ - (matched_.empty() ? 0 : *std::max_element(matched_.begin(), matched_.end()));
}

// Shows the text up to byte `end` of all that was pushed.
void StopMatcher::Show(int64_t end, std::string& shown) {
  const int64_t held_back_begin = num_pushed_ - std::ssize(held_back_);
  const size_t count = static_cast<size_t>(std::max<int64_t>(0, end - held_back_begin));
  shown.append(held_back_, 0, count);
  held_back_.erase(0, count);
}

}  // namespace polyreme::text
