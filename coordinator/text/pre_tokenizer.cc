#include "coordinator/text/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

namespace polyreme::text {
namespace {

constexpr int32_t kMaxDepth = 8;
constexpr int32_t kMaxStages = 64;

// Source: openai/gpt-2, encoder.py.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Make(const Json* json, const std::string& path) {
  PreTokenizer pre_tokenizer;
  if (json != nullptr) RETURN_IF_ERROR(pre_tokenizer.Read(*json, path, 0));
  if (!pre_tokenizer.has_byte_level_) {
    return InvalidArgument(
        "{}: expected ByteLevel as the last step: only byte-level BPE is supported", path);
  }
  return pre_tokenizer;
}

absl::Status PreTokenizer::Read(const Json& json, const std::string& path, int32_t depth) {
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (depth > kMaxDepth || std::ssize(stages_) >= kMaxStages)
    return InvalidArgument("{}: too many steps", path);
  if (has_byte_level_)
    return InvalidArgument("{}: \"{}\" after ByteLevel is not supported", path, type);
  if (type == "ByteLevel") return ReadByteLevel(fields);
  if (type == "Split") return ReadSplit(fields);
  if (type == "Digits") return ReadDigits(fields);
  if (type != "Sequence") {
    return InvalidArgument(
        "{}: pre-tokenizer \"{}\" is not supported (known: ByteLevel, Split, Digits, Sequence)",
        path, type);
  }
  RETURN_IF_ERROR(fields.AllowOnly({"type", "pretokenizers"}));
  ASSIGN_OR_RETURN(const Json::Array* parts, fields.Array("pretokenizers"));
  for (size_t i = 0; i < parts->size(); ++i) {
    RETURN_IF_ERROR(Read((*parts)[i], fields.PathTo("pretokenizers", i), depth + 1));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ReadByteLevel(const JsonFields& fields) {
  // trim_offsets is about character offsets, which nobody asks for here.
  RETURN_IF_ERROR(fields.AllowOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  ASSIGN_OR_RETURN(adds_prefix_space_, fields.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool uses_regex, fields.Bool("use_regex", true));
  has_byte_level_ = true;
  prefix_stage_ = stages_.size();
  if (!uses_regex) return absl::OkStatus();
  ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kGpt2Pattern));
  stages_.push_back({.regex = std::move(regex)});
  return absl::OkStatus();
}

absl::StatusOr<Regex> PreTokenizer::ReadPattern(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const JsonFields pattern, fields.Object("pattern"));
  RETURN_IF_ERROR(pattern.AllowOnly({"Regex", "String"}));
  if (pattern.json().members().size() != 1) {
    return InvalidArgument("{}: expected one of Regex and String", pattern.path());
  }
  const std::string& kind = pattern.json().members()[0].first;
  ASSIGN_OR_RETURN(const std::string text, pattern.String(kind));
  absl::StatusOr<Regex> regex =
      kind == "Regex" ? Regex::Compile(text) : Regex::CompileLiteral(text);
  if (!regex.ok()) return Annotate(regex.status(), pattern.PathTo(kind));
  return regex;
}

absl::Status PreTokenizer::ReadSplit(const JsonFields& fields) {
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> kBehaviors = {
      {{"Isolated", Behavior::kIsolated},
       {"Removed", Behavior::kRemoved},
       {"MergedWithPrevious", Behavior::kMergedWithPrevious},
       {"MergedWithNext", Behavior::kMergedWithNext},
       {"Contiguous", Behavior::kContiguous}}};
  RETURN_IF_ERROR(fields.AllowOnly({"type", "pattern", "behavior", "invert"}));
  ASSIGN_OR_RETURN(Regex regex, ReadPattern(fields));
  ASSIGN_OR_RETURN(const std::string name, fields.String("behavior"));
  ASSIGN_OR_RETURN(const bool is_inverted, fields.Bool("invert", false));
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) {
      stages_.push_back({std::move(regex), behavior, is_inverted});
      return absl::OkStatus();
    }
  }
  return InvalidArgument("{}: \"{}\" is not supported", fields.PathTo("behavior"), name);
}

absl::Status PreTokenizer::ReadDigits(const JsonFields& fields) {
  RETURN_IF_ERROR(fields.AllowOnly({"type", "individual_digits"}));
  ASSIGN_OR_RETURN(const bool are_single, fields.Bool("individual_digits", false));
  ASSIGN_OR_RETURN(Regex regex, Regex::Compile(R"(\p{N})"));
  stages_.push_back({std::move(regex), are_single ? Behavior::kIsolated : Behavior::kContiguous});
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(std::string_view text, Scratch& scratch, Take take) const {
  scratch.spans_.resize(stages_.size());
  return RunStage(0, text, scratch, take);
}

// As deep as there are stages, whatever the text.
absl::Status PreTokenizer::RunStage(size_t stage, std::string_view text, Scratch& scratch,
                                    Take take) const {
  if (text.empty()) return absl::OkStatus();
  std::string with_space;
  if (stage == prefix_stage_ && adds_prefix_space_ && text.front() != ' ') {
    with_space.reserve(text.size() + 1);
    with_space.append(1, ' ').append(text);
    text = with_space;
  }
  if (stage == stages_.size()) return take(text);
  const Stage& step = stages_[stage];
  std::vector<RegexSpan>& spans = scratch.spans_[stage];
  RETURN_IF_ERROR(step.regex.Split(text, scratch.regex_, spans));
  if (step.is_inverted) {
    for (RegexSpan& span : spans) span.is_match = !span.is_match;
  }
  Arrange(step.behavior, spans);
  for (const RegexSpan& span : spans) {
    RETURN_IF_ERROR(
        RunStage(stage + 1, text.substr(span.begin, span.end - span.begin), scratch, take));
  }
  return absl::OkStatus();
}

// Joins or drops spans in place. The cases follow huggingface/tokenizers, NormalizedString::split.
void PreTokenizer::Arrange(Behavior behavior, std::vector<RegexSpan>& spans) {
  if (behavior == Behavior::kIsolated) return;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(spans, [](const RegexSpan& span) { return span.is_match; });
    return;
  }
  // MergedWithNext is MergedWithPrevious seen from the end.
  const bool is_backward = behavior == Behavior::kMergedWithNext;
  if (is_backward) std::reverse(spans.begin(), spans.end());
  bool last_is_match = false;
  size_t kept = 0;
  for (const RegexSpan span : spans) {
    const bool joins = behavior == Behavior::kContiguous ? span.is_match == last_is_match
                                                         : span.is_match && !last_is_match;
    last_is_match = span.is_match;
    if (joins && kept > 0) {
      RegexSpan& last = spans[kept - 1];
      (is_backward ? last.begin : last.end) = is_backward ? span.begin : span.end;
    } else {
      spans[kept++] = span;
    }
  }
  spans.resize(kept);
  if (is_backward) std::reverse(spans.begin(), spans.end());
}

}  // namespace polyreme::text
