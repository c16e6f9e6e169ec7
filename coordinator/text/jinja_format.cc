#include <algorithm>
#include <cmath>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

// "%[.precision]type": the parts of Python's conversions that templates use.
struct Conversion {
  char type = 0;
  int precision = 6;
  bool has_precision = false;
};

absl::StatusOr<Conversion> ReadConversion(std::string_view format, size_t& at) {
  Conversion conversion;
  if (at < format.size() && format[at] == '.') {
    conversion.has_precision = true;
    conversion.precision = 0;
    for (++at; at < format.size() && format[at] >= '0' && format[at] <= '9'; ++at) {
      conversion.precision = std::min(conversion.precision * 10 + (format[at] - '0'), 100);
    }
  }
  if (at >= format.size()) return InvalidArgument("incomplete format");
  conversion.type = format[at++];
  const bool fits = conversion.has_precision ? conversion.type == 'f' : true;
  if (!fits || std::string_view("sridf").find(conversion.type) == std::string_view::npos) {
    return InvalidArgument("the conversion '%{}{}' is not supported",
                           conversion.has_precision ? "." : "", conversion.type);
  }
  return conversion;
}

absl::Status AppendConverted(const Context& context, const Conversion& conversion,
                             const Value& value, TextBuilder& out) {
  if (conversion.type == 's') {
    AppendStr(value, context.budget, out);
  } else if (conversion.type == 'r') {
    AppendRepr(value, context.budget, out);
  } else if (!value.is_number()) {
    return InvalidArgument("%{} format: a number is required, not {}", conversion.type,
                           value.TypeName());
  } else if (conversion.type == 'f') {
    out.Append(fmt::format("{:.{}f}", value.as_double(), conversion.precision), Origin::kTemplate);
  } else if (value.is_int()) {
    out.Append(std::to_string(value.as_int()), Origin::kTemplate);
  } else {
    if (!(std::abs(value.as_double()) < 9e18)) {
      return InvalidArgument("%d format: {} does not fit 64 bits", value.as_double());
    }
    out.Append(std::to_string(static_cast<int64_t>(value.as_double())), Origin::kTemplate);
  }
  return absl::OkStatus();
}

// The argument a field of FormatBraces names: "", "0" or "name".
absl::StatusOr<Value> FieldValue(std::string_view field, size_t& automatic,
                                 const Arguments& arguments) {
  for (const auto& [name, value] : arguments.keywords) {
    if (name == field) return value;
  }
  size_t index = 0;
  if (field.empty()) {
    index = automatic++;
  } else {
    for (const char c : field) {
      if (c < '0' || c > '9' || index > arguments.positional.size()) {
        return InvalidArgument("the field '{{{}}}' of str.format is unknown or not supported",
                               field);
      }
      index = index * 10 + static_cast<size_t>(c - '0');
    }
  }
  if (index >= arguments.positional.size()) {
    return InvalidArgument("replacement index {} out of range for positional arguments", index);
  }
  return arguments.positional[index];
}

}  // namespace

absl::StatusOr<Text> FormatPercent(const Context& context, const Text& format,
                                   const Value& values) {
  const bool is_tuple = values.is_list() && values.list().kind == List::Kind::kTuple;
  const std::vector<Value> arguments = is_tuple ? values.list().items : std::vector<Value>{values};
  const std::string_view view = format.view();
  TextBuilder out(context.budget);
  size_t used = 0;
  size_t at = 0;
  while (context.budget.Spend(1)) {
    const size_t percent = FindText(view, "%", at);
    out.Append(format.Slice(at, std::min(percent, view.size())));
    if (percent == std::string_view::npos) break;
    at = percent + 1;
    if (at < view.size() && view[at] == '%') {
      out.Append(format.Slice(at, at + 1));
      ++at;
      continue;
    }
    ASSIGN_OR_RETURN(const Conversion conversion, ReadConversion(view, at));
    if (used >= arguments.size()) return InvalidArgument("not enough arguments for format string");
    RETURN_IF_ERROR(AppendConverted(context, conversion, arguments[used++], out));
  }
  // Python takes what has keys or indexes for a mapping, of which nothing needs to be used.
  const bool is_mapping =
      values.is_dict() || (values.is_list() && !is_tuple && values.list().indexable());
  if (used < arguments.size() && !is_mapping) {
    return InvalidArgument("not all arguments converted during string formatting");
  }
  return out.Take();
}

absl::StatusOr<Text> FormatBraces(const Context& context, const Text& format,
                                  const Arguments& arguments) {
  const std::string_view view = format.view();
  TextBuilder out(context.budget);
  size_t automatic = 0;
  size_t at = 0;
  while (context.budget.Spend(1)) {
    const size_t brace = view.find_first_of("{}", at);
    out.Append(format.Slice(at, std::min(brace, view.size())));
    if (brace == std::string_view::npos) break;
    if (brace + 1 < view.size() && view[brace + 1] == view[brace]) {
      out.Append(format.Slice(brace, brace + 1));
      at = brace + 2;
      continue;
    }
    const size_t close = FindText(view, "}", brace);
    if (view[brace] == '}' || close == std::string_view::npos) {
      return InvalidArgument("single '{}' encountered in format string", view[brace]);
    }
    ASSIGN_OR_RETURN(const Value value,
                     FieldValue(view.substr(brace + 1, close - brace - 1), automatic, arguments));
    AppendStr(value, context.budget, out);
    at = close + 1;
  }
  return out.Take();
}

}  // namespace polyreme::text::jinja
