#include "deploy/bench/dataset.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "parallel/base/limits.h"

namespace polyreme::bench {
namespace {

constexpr int64_t kMaxLineBytes = int64_t{8} << 20;
constexpr size_t kMaxEntries = 1'000'000;

// Calls `read` with the number and the object of each line that is not empty.
absl::Status ForEachLine(std::string_view lines,
                         const std::function<absl::Status(const Json&)>& read) {
  size_t count = 0;
  for (int32_t number = 1; !lines.empty(); ++number) {
    const size_t end = lines.find('\n');
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("line {}", number);
    const absl::StatusOr<Json> json = Json::Parse(line, {.bytes_max = kMaxLineBytes});
    if (!json.ok()) return Annotate(json.status(), where);
    if (!json->is_object()) {
      return InvalidArgument("{}: expected an object, got {}", where, json->type_name());
    }
    RETURN_IF_ERROR(Annotate(read(*json), where));
    if (++count > kMaxEntries) return ResourceExhausted("more than {} lines", kMaxEntries);
  }
  if (count == 0) return InvalidArgument("expected at least one line, got none");
  return absl::OkStatus();
}

std::string TextOf(const Json& line, std::string_view name) {
  const Json* value = line.Find(name);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

// The first of `names` that is there, as a whole number in [1, kMaxPositions].
absl::StatusOr<int32_t> LengthOf(const Json& line, std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    const Json* value = line.Find(name);
    if (value == nullptr) continue;
    if (!value->is_int() || value->as_int() < 1 || value->as_int() > limits::kMaxPositions) {
      return InvalidArgument("{}: expected 1 to {}, got {:.40}", name, limits::kMaxPositions,
                             value->Dump());
    }
    return static_cast<int32_t>(value->as_int());
  }
  return InvalidArgument("expected {}", *names.begin());
}

absl::StatusOr<double> TimeOf(const Json& line) {
  for (const auto& [name, unit] : {std::pair<std::string_view, double>{"time", 1},
                                   std::pair<std::string_view, double>{"timestamp", 1e-3}}) {
    const Json* value = line.Find(name);
    if (value == nullptr) continue;
    if (!value->is_number() || !(std::abs(value->as_double()) < 1e15)) {
      return InvalidArgument("{}: expected a number, got {:.40}", name, value->Dump());
    }
    return value->as_double() * unit;
  }
  return InvalidArgument("expected timestamp (milliseconds) or time (seconds)");
}

class TokenDrawer {
 public:
  TokenDrawer(int32_t vocabulary, uint64_t seed)
      : random_(seed), token_(vocabulary / 10, std::max(vocabulary - 1, vocabulary / 10)) {}
  std::vector<TokenId> Draw(int32_t count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = token_(random_);
    return tokens;
  }
  int32_t Length(int32_t length, double ratio) {
    const double low = std::max(1.0, std::floor(length * (1 - ratio)));
    const double high = std::max(low, std::ceil(length * (1 + ratio)));
    return std::uniform_int_distribution<int32_t>(static_cast<int32_t>(low),
                                                  static_cast<int32_t>(high))(random_);
  }

 private:
  std::mt19937_64 random_;
  std::uniform_int_distribution<TokenId> token_;
};

}  // namespace

absl::StatusOr<std::vector<PromptEntry>> ReadPrompts(std::string_view lines, int32_t max_tokens) {
  std::vector<PromptEntry> entries;
  RETURN_IF_ERROR(ForEachLine(lines, [&](const Json& line) -> absl::Status {
    PromptEntry entry;
    std::string text = TextOf(line, "prompt");
    if (text.empty()) return InvalidArgument("expected a prompt that is a string and not empty");
    entry.prompt = std::move(text);
    entry.kind = TextOf(line, "kind");
    entry.language = TextOf(line, "language");
    entry.max_tokens = max_tokens;
    if (line.Find("max_tokens") != nullptr) {
      ASSIGN_OR_RETURN(entry.max_tokens, LengthOf(line, {"max_tokens"}));
    }
    entries.push_back(std::move(entry));
    return absl::OkStatus();
  }));
  return entries;
}

absl::StatusOr<std::vector<PromptEntry>> DrawRandom(const RandomOptions& options) {
  if (options.num_prompts < 1 || options.input_len < 1 || options.output_len < 1 ||
      options.prefix_len < 0 || options.vocabulary < 2 ||
      !(options.range_ratio >= 0 && options.range_ratio < 1)) {
    return InvalidArgument(
        "random prompts need lengths of at least 1, a vocabulary of at least 2 tokens and a range "
        "ratio from 0 to below 1, got {} + {}, {}, {}",
        options.input_len, options.output_len, options.vocabulary, options.range_ratio);
  }
  TokenDrawer drawer(options.vocabulary, options.seed);
  const std::vector<TokenId> prefix = drawer.Draw(options.prefix_len);
  std::vector<PromptEntry> entries(static_cast<size_t>(options.num_prompts));
  for (PromptEntry& entry : entries) {
    const int32_t length = drawer.Length(options.input_len, options.range_ratio);
    entry.max_tokens = drawer.Length(options.output_len, options.range_ratio);
    std::vector<TokenId> tokens = prefix;
    const std::vector<TokenId> own = drawer.Draw(length);
    tokens.insert(tokens.end(), own.begin(), own.end());
    entry.prompt_tokens = static_cast<int32_t>(tokens.size());
    entry.prompt = std::move(tokens);
  }
  return entries;
}

absl::StatusOr<std::vector<PromptEntry>> ReadTrace(std::string_view lines, double speed,
                                                   int32_t vocabulary, uint64_t seed) {
  if (!(speed > 0) || vocabulary < 2) {
    return InvalidArgument("a trace needs a speed above 0 and a vocabulary, got {} and {}", speed,
                           vocabulary);
  }
  TokenDrawer drawer(vocabulary, seed);
  std::vector<PromptEntry> entries;
  RETURN_IF_ERROR(ForEachLine(lines, [&](const Json& line) -> absl::Status {
    PromptEntry entry;
    ASSIGN_OR_RETURN(entry.seconds, TimeOf(line));
    ASSIGN_OR_RETURN(entry.max_tokens,
                     LengthOf(line, {"output_length", "output_tokens", "output_len"}));
    if (std::string text = TextOf(line, "prompt"); !text.empty()) {
      entry.prompt = std::move(text);
    } else {
      ASSIGN_OR_RETURN(entry.prompt_tokens,
                       LengthOf(line, {"input_length", "input_tokens", "input_len"}));
      entry.prompt = drawer.Draw(entry.prompt_tokens);
    }
    entries.push_back(std::move(entry));
    return absl::OkStatus();
  }));
  std::stable_sort(entries.begin(), entries.end(), [](const PromptEntry& a, const PromptEntry& b) {
    return a.seconds < b.seconds;
  });
  const double first = entries.front().seconds;
  for (PromptEntry& entry : entries) entry.seconds = (entry.seconds - first) / speed;
  return entries;
}

std::vector<double> ArrivalTimes(int32_t count, double rate, double burstiness, uint64_t seed) {
  std::vector<double> times(static_cast<size_t>(std::max(count, 0)), 0.0);
  if (std::isinf(rate)) return times;
  std::mt19937_64 random(seed);
  std::gamma_distribution<double> gap(std::isinf(burstiness) ? 1 : burstiness,
                                      std::isinf(burstiness) ? 1 : 1 / (rate * burstiness));
  for (size_t i = 1; i < times.size(); ++i) {
    times[i] = times[i - 1] + (std::isinf(burstiness) ? 1 / rate : gap(random));
  }
  return times;
}

}  // namespace polyreme::bench
