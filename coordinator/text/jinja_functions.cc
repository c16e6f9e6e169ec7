#include <algorithm>
#include <cstdlib>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

using Function = absl::StatusOr<Value> (*)(const Context&, const Arguments&);

// As Jinja's sandbox has it.
constexpr int64_t kMaxRange = 100000;
constexpr size_t kMaxTimeFormatBytes = 256;

absl::StatusOr<Value> Range(const Context& context, const Arguments& arguments) {
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3 || !arguments.keywords.empty()) {
    return InvalidArgument("range expected 1 to 3 arguments, got {}",
                           given.size() + arguments.keywords.size());
  }
  for (const Value& value : given) {
    if (!value.is_int()) {
      return InvalidArgument("'{}' object cannot be interpreted as an integer", value.TypeName());
    }
  }
  const int64_t start = given.size() > 1 ? given[0].as_int() : 0;
  const int64_t stop = given.size() > 1 ? given[1].as_int() : given[0].as_int();
  const int64_t step = given.size() > 2 ? given[2].as_int() : 1;
  if (step == 0) return InvalidArgument("range() arg 3 must not be zero");
  // Wide arithmetic, so that no choice of bounds overflows.
  __extension__ using Wide = __int128;
  const Wide distance = step > 0 ? Wide{stop} - start : Wide{start} - stop;
  const Wide stride = step > 0 ? Wide{step} : -Wide{step};
  const Wide count = distance > 0 ? (distance - 1) / stride + 1 : 0;
  if (count > kMaxRange) {
    return InvalidArgument("range too big: expected at most {} numbers", kMaxRange);
  }
  if (!context.budget.Spend(static_cast<int64_t>(count))) return Value();
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  return MakeList(List::Kind::kRange, std::move(items));
}

// dict(mapping or pairs, **keywords), which namespace() shares.
absl::StatusOr<Dict> BuildDict(const Context& context, const Arguments& arguments) {
  Dict dict;
  for (const Value& source : arguments.positional) {
    if (source.is_dict()) {
      if (!context.budget.SpendItems(source.dict().entries().size())) break;
      for (const auto& [key, value] : source.dict().entries()) dict.Set(key, value);
      continue;
    }
    ASSIGN_OR_RETURN(const auto pairs, Iterate(context, source));
    for (const Value& pair : pairs) {
      ASSIGN_OR_RETURN(const auto parts, Iterate(context, pair));
      if (parts.size() != 2 || !Dict::IsHashable(parts[0])) {
        return InvalidArgument("expected a dict or pairs of key and value");
      }
      dict.Set(parts[0], parts[1]);
    }
  }
  for (const auto& [name, value] : arguments.keywords) {
    dict.Set(FromString(name, Origin::kTemplate), value);
  }
  return dict;
}

absl::StatusOr<Value> MakeDictValue(const Context& context, const Arguments& arguments) {
  ASSIGN_OR_RETURN(Dict dict, BuildDict(context, arguments));
  return MakeDict(std::move(dict));
}

absl::StatusOr<Value> MakeNamespace(const Context& context, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const Dict dict, BuildDict(context, arguments));
  if (dict.reaches_namespace()) {
    return InvalidArgument("a namespace inside a namespace is not supported");
  }
  auto names = std::make_shared<Namespace>();
  for (const auto& [key, value] : dict.entries()) {
    if (!key.is_string()) return InvalidArgument("expected names as keys of a namespace");
    names->attributes.emplace_back(key.text().str(), value);
  }
  return Value(std::move(names));
}

absl::StatusOr<Value> RaiseException(const Context& context, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("raise_exception", {"message"}, 1));
  return InvalidArgument("{}", Str(bound[0], context.budget).view());
}

absl::StatusOr<Value> FormatNow(const Context& context, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("strftime_now", {"format"}, 1));
  ASSIGN_OR_RETURN(const Text format, TextOr(bound[0], "format", Text()));
  if (format.size() > kMaxTimeFormatBytes) {
    return InvalidArgument("expected a time format of at most {} bytes, got {}",
                           kMaxTimeFormatBytes, format.size());
  }
  return FromString(absl::FormatTime(format.str(), context.now, context.time_zone),
                    Origin::kTemplate);
}

constexpr std::pair<std::string_view, Function> kFunctions[] = {
    {"dict", MakeDictValue}, {"namespace", MakeNamespace}, {"raise_exception", RaiseException},
    {"range", Range},        {"strftime_now", FormatNow},
};

const std::pair<std::string_view, Function>* FindFunction(std::string_view name) {
  for (const auto& entry : kFunctions) {
    if (entry.first == name) return &entry;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::vector<Value>> Arguments::Bind(std::string_view function,
                                                   std::initializer_list<std::string_view> names,
                                                   size_t required) const {
  std::vector<Value> bound(names.size(), Value(Undefined{}));
  std::vector<bool> given(names.size(), false);
  if (positional.size() > names.size()) {
    return InvalidArgument("{}() takes at most {} arguments, got {}", function, names.size(),
                           positional.size());
  }
  std::copy(positional.begin(), positional.end(), bound.begin());
  std::fill_n(given.begin(), positional.size(), true);
  for (const auto& [name, value] : keywords) {
    const auto found = std::find(names.begin(), names.end(), name);
    const auto index = static_cast<size_t>(found - names.begin());
    if (found == names.end() || given[index]) {
      return InvalidArgument("{}() got an unexpected argument '{}'", function, name);
    }
    bound[index] = value;
    given[index] = true;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!given[i]) {
      return InvalidArgument("{}() needs the argument '{}'", function, *(names.begin() + i));
    }
  }
  return bound;
}

absl::StatusOr<int64_t> IntegerOr(const Value& value, std::string_view name, int64_t otherwise) {
  if (value.is_undefined()) return otherwise;
  if (!value.is_int()) {
    return InvalidArgument("expected an integer for '{}', got {}", name, value.TypeName());
  }
  return value.as_int();
}

absl::StatusOr<Text> TextOr(const Value& value, std::string_view name, Text otherwise) {
  if (value.is_undefined()) return otherwise;
  if (!value.is_string()) {
    return InvalidArgument("expected a string for '{}', got {}", name, value.TypeName());
  }
  return value.text();
}

bool TruthOr(const Value& value, bool otherwise) {
  return value.is_undefined() ? otherwise : value.Truthy();
}

bool IsFunction(std::string_view name) {
  return FindFunction(name) != nullptr;
}

absl::StatusOr<Value> CallFunction(const Context& context, std::string_view name,
                                   const Arguments& arguments) {
  const auto* function = FindFunction(name);
  CHECK(function != nullptr, "no function {}", name);
  return function->second(context, arguments);
}

}  // namespace polyreme::text::jinja
