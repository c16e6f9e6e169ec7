// Filters over one value: text, numbers, defaults. Those over sequences are in
// jinja_sequence_filters.cc.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

using Result = absl::StatusOr<Value>;

template <Case to>
Result CaseFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("filter", {}).status());
  return Value(ChangeCase(context, Str(value, context.budget), to));
}

// Jinja's title: words begin behind blanks, dashes and opening brackets, not behind every
// non-letter.
Result TitleFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("title", {}).status());
  const Text text = Str(value, context.budget);
  TextBuilder out(context.budget);
  bool begins = true;
  for (size_t at = 0; at < text.size() && context.budget.Spend(1);) {
    const CodePoint c = DecodeAt(text.view(), at);
    const Text character = text.Slice(at, at + c.size);
    out.Append(ChangeCase(context, character, begins ? Case::kUpper : Case::kLower));
    begins = IsSpace(c.value) ||
             (c.value < 0x80 &&
              std::string_view("-({[<").find(static_cast<char>(c.value)) != std::string_view::npos);
    at += c.size;
  }
  return Value(out.Take());
}

Result TrimFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("trim", {"chars"}));
  const Text text = Str(value, context.budget);
  if (bound[0].is_undefined() || bound[0].is_none()) {
    return Value(Strip(text, Side::kBoth, nullptr));
  }
  ASSIGN_OR_RETURN(const Text characters, TextOr(bound[0], "chars", Text()));
  return Value(Strip(text, Side::kBoth, &characters));
}

Result ReplaceFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("replace", {"old", "new", "count"}, 2));
  const Value count_given = bound[2].is_none() ? Value(Undefined{}) : bound[2];
  ASSIGN_OR_RETURN(const int64_t count, IntegerOr(count_given, "count", -1));
  Budget& budget = context.budget;
  return Value(
      Replace(context, Str(value, budget), Str(bound[0], budget), Str(bound[1], budget), count));
}

Result StringFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("string", {}).status());
  return Value(Str(value, context.budget));
}

// Nothing is escaped on output, so a value marked safe is the value.
Result SafeFilter(const Context&, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("safe", {}).status());
  return value;
}

Result EscapeFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("escape", {}).status());
  constexpr std::pair<std::string_view, std::string_view> kEntities[] = {
      {"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
  Text text = Str(value, context.budget);
  for (const auto& [from, to] : kEntities) {
    text = Replace(context, text, Text(std::string(from), Origin::kTemplate),
                   Text(std::string(to), Origin::kTemplate), -1);
  }
  return Value(std::move(text));
}

Result IndentFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("indent", {"width", "first", "blank"}));
  if (!value.is_string()) {
    return InvalidArgument("the filter 'indent' expects a string, got {}", value.TypeName());
  }
  Value width = bound[0];
  if (!width.is_string()) {
    ASSIGN_OR_RETURN(const int64_t columns, IntegerOr(width, "width", 4));
    ASSIGN_OR_RETURN(width, ApplyBinary(context, Operator::kMultiply,
                                        FromString(" ", Origin::kTemplate), Value(columns)));
  }
  const bool blank = TruthOr(bound[2], false);
  Value ended;  // Jinja adds a newline first, so that a last empty line counts
  ASSIGN_OR_RETURN(
      ended, ApplyBinary(context, Operator::kAdd, value, FromString("\n", Origin::kTemplate)));
  const auto lines = SplitLines(context, ended.text(), false);
  TextBuilder out(context.budget);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", Origin::kTemplate);
    const bool indented = i == 0 ? TruthOr(bound[1], false) : blank || !lines[i].text().empty();
    if (indented) out.Append(width.text());
    out.Append(lines[i].text());
  }
  return Value(out.Take());
}

Result FormatFilter(const Context& context, const Value& value, const Arguments& arguments) {
  if (!arguments.keywords.empty()) {
    return InvalidArgument("keyword arguments of the filter 'format' are not supported");
  }
  ASSIGN_OR_RETURN(Text text, FormatPercent(context, Str(value, context.budget),
                                            MakeList(List::Kind::kTuple, arguments.positional)));
  return Value(std::move(text));
}

Result DefaultFilter(const Context&, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("default", {"default_value", "boolean"}));
  if (!value.is_undefined() && (!TruthOr(bound[1], false) || value.Truthy())) return value;
  return arguments.positional.empty() && bound[0].is_undefined() ? Value(Text()) : bound[0];
}

Result AbsFilter(const Context&, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("abs", {}).status());
  if (value.is_float()) return Value(std::abs(value.as_double()));
  if (value.is_int() && value.as_int() >= 0) return Value(value.as_int());
  return Negate(value);
}

// Python's float(text): decimal digits, inf or nan, blanks around.
std::optional<double> ParseFloat(const Text& text) {
  std::string digits = Strip(text, Side::kBoth, nullptr).str();
  std::erase(digits, '_');
  if (digits.empty() || digits.find_first_of("xXpP") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double number = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size()) return std::nullopt;
  return number;
}

std::optional<int64_t> ParseInteger(const Text& text, int base) {
  std::string digits = Strip(text, Side::kBoth, nullptr).str();
  std::erase(digits, '_');
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.erase(0, 1);
  const char mark = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
  if (mark != '\0' && digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == mark) {
    digits.erase(0, 2);
  }
  if (digits.starts_with('-') || digits.starts_with('+')) return std::nullopt;
  int64_t number = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, number, base);
  if (digits.empty() || error != std::errc() || stop != end) return std::nullopt;
  return negative ? -number : number;
}

Result IntFilter(const Context&, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("int", {"default", "base"}));
  ASSIGN_OR_RETURN(const int64_t base, IntegerOr(bound[1], "base", 10));
  if (base < 2 || base > 36) return InvalidArgument("expected a base from 2 to 36, got {}", base);
  const Value otherwise = bound[0].is_undefined() ? Value(int64_t{0}) : bound[0];
  if (value.is_undefined()) return Negate(value).status();
  if (value.is_int()) return Value(value.as_int());
  std::optional<double> number;
  if (value.is_float()) number = value.as_double();
  if (value.is_string()) {
    if (const auto integer = ParseInteger(value.text(), static_cast<int>(base))) {
      return Value(*integer);
    }
    number = ParseFloat(value.text());
  }
  if (!number.has_value() || !std::isfinite(*number)) return otherwise;
  if (std::abs(*number) >= 9.2e18) return InvalidArgument("{} does not fit 64 bits", *number);
  return Value(static_cast<int64_t>(*number));
}

Result FloatFilter(const Context&, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("float", {"default"}));
  if (value.is_undefined()) return Negate(value).status();
  if (value.is_number()) return Value(value.as_double());
  if (value.is_string()) {
    if (const auto number = ParseFloat(value.text())) return Value(*number);
  }
  return bound[0].is_undefined() ? Value(0.0) : bound[0];
}

Result RoundFilter(const Context&, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("round", {"precision", "method"}));
  ASSIGN_OR_RETURN(const int64_t precision, IntegerOr(bound[0], "precision", 0));
  ASSIGN_OR_RETURN(const Text method,
                   TextOr(bound[1], "method", Text("common", Origin::kTemplate)));
  if (!value.is_number()) {
    return InvalidArgument("type {} doesn't define __round__ method", value.TypeName());
  }
  if (precision < 0 || precision > 17) {
    return InvalidArgument("expected a precision from 0 to 17, got {}", precision);
  }
  const double number = value.as_double();
  if (method.view() == "common") {
    if (value.is_int()) return Value(value.as_int());
    // Printing rounds the exact binary value half to even, which is Python's round().
    return Value(std::strtod(fmt::format("{:.{}f}", number, precision).c_str(), nullptr));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method.view() == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method.view() == "floor") return Value(std::floor(number * scale) / scale);
  return InvalidArgument("method must be common, ceil or floor");
}

Result AttributeFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("attr", {"name"}, 1));
  ASSIGN_OR_RETURN(const Text name, TextOr(bound[0], "name", Text()));
  if (value.is_dict() && !IsMethod(value, name.view())) {
    return MakeUndefined(fmt::format("'dict object' has no attribute '{}'", name.view()));
  }
  return GetAttribute(context, value, name.view());
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"abs", AbsFilter},
    {"attr", AttributeFilter},
    {"capitalize", CaseFilter<Case::kCapitalize>},
    {"d", DefaultFilter},
    {"default", DefaultFilter},
    {"e", EscapeFilter},
    {"escape", EscapeFilter},
    {"float", FloatFilter},
    {"forceescape", EscapeFilter},
    {"format", FormatFilter},
    {"indent", IndentFilter},
    {"int", IntFilter},
    {"lower", CaseFilter<Case::kLower>},
    {"replace", ReplaceFilter},
    {"round", RoundFilter},
    {"safe", SafeFilter},
    {"string", StringFilter},
    {"title", TitleFilter},
    {"tojson", ToJson},
    {"trim", TrimFilter},
    {"upper", CaseFilter<Case::kUpper>},
};

}  // namespace

absl::StatusOr<Value> ApplyFilter(const Context& context, std::string_view name, const Value& value,
                                  const Arguments& arguments) {
  context.budget.Spend(1);
  if (value.is_string()) context.budget.SpendScan(value.text().size());
  Filter filter = FindSequenceFilter(name);
  for (const auto& [known, function] : kFilters) {
    if (known == name) filter = function;
  }
  if (filter == nullptr) {
    return InvalidArgument("the filter '{}' is unknown or not supported", name);
  }
  return filter(context, value, arguments);
}

}  // namespace polyreme::text::jinja
