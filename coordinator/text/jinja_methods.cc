#include <utf8proc.h>

#include <algorithm>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

using Method = absl::StatusOr<Value> (*)(const Context&, const Value& self, const Arguments&);
using Result = absl::StatusOr<Value>;

absl::Status NoArguments(const Arguments& arguments, std::string_view name) {
  return arguments.Bind(name, {}).status();
}

template <Case to>
Result CaseMethod(const Context& context, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(NoArguments(arguments, "str"));
  return Value(ChangeCase(context, self.text(), to));
}

template <Side side>
Result StripMethod(const Context&, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("strip", {"chars"}));
  if (bound[0].is_undefined() || bound[0].is_none()) {
    return Value(Strip(self.text(), side, nullptr));
  }
  ASSIGN_OR_RETURN(const Text characters, TextOr(bound[0], "chars", Text()));
  return Value(Strip(self.text(), side, &characters));
}

using Splitter = std::vector<Value> (*)(const Context&, const Text&, const Text*, int64_t);

template <Splitter splitter>
Result SplitMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("split", {"sep", "maxsplit"}));
  ASSIGN_OR_RETURN(const int64_t limit, IntegerOr(bound[1], "maxsplit", -1));
  if (bound[0].is_undefined() || bound[0].is_none()) {
    return MakeList(List::Kind::kList, splitter(context, self.text(), nullptr, limit));
  }
  ASSIGN_OR_RETURN(const Text separator, TextOr(bound[0], "sep", Text()));
  if (separator.empty()) return InvalidArgument("empty separator");
  return MakeList(List::Kind::kList, splitter(context, self.text(), &separator, limit));
}

Result SplitLinesMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("splitlines", {"keepends"}));
  return MakeList(List::Kind::kList, SplitLines(context, self.text(), TruthOr(bound[0], false)));
}

template <Side side>
Result PartitionMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("partition", {"sep"}, 1));
  ASSIGN_OR_RETURN(const Text separator, TextOr(bound[0], "sep", Text()));
  if (separator.empty()) return InvalidArgument("empty separator");
  auto parts = side == Side::kLeft ? Split(context, self.text(), &separator, 1)
                                   : SplitFromRight(context, self.text(), &separator, 1);
  if (parts.size() == 2) {
    parts.insert(parts.begin() + 1, Value(separator));
  } else if (side == Side::kLeft) {
    parts.insert(parts.end(), 2, Value(Text()));
  } else {
    parts.insert(parts.begin(), 2, Value(Text()));
  }
  return MakeList(List::Kind::kTuple, std::move(parts));
}

// The part [start, end) of a string that searching methods look at, and where it begins.
struct Window {
  Text text;
  int64_t begin = 0;  // in characters
};

absl::StatusOr<Window> WindowOf(const Context& context, const Value& self,
                                const std::vector<Value>& bound) {
  Window window{self.text()};
  if (bound[1].is_undefined() && bound[2].is_undefined()) return window;
  ASSIGN_OR_RETURN(window.begin, IntegerOr(bound[1], "start", 0));
  if (window.begin < 0) {
    window.begin = std::max<int64_t>(0, window.begin + CountCharacters(self.text().view()));
  }
  const Value end = bound[2].is_undefined() ? Value() : bound[2];
  ASSIGN_OR_RETURN(const Value part, GetSlice(context, self, {Value(window.begin), end, Value()}));
  window.text = part.text();
  return window;
}

template <Side side>
Result AffixMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("startswith", {"affix", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const Window window, WindowOf(context, self, bound));
  const bool is_tuple = bound[0].is_list() && bound[0].list().kind == List::Kind::kTuple;
  const auto candidates = is_tuple ? bound[0].list().items : std::vector<Value>{bound[0]};
  for (const Value& candidate : candidates) {
    if (!candidate.is_string()) {
      return InvalidArgument("startswith/endswith expect a string or a tuple of strings, got {}",
                             candidate.TypeName());
    }
    const std::string_view affix = candidate.text().view();
    const std::string_view view = window.text.view();
    if (side == Side::kLeft ? view.starts_with(affix) : view.ends_with(affix)) return Value(true);
  }
  return Value(false);
}

enum class Missing { kMinusOne, kError };

template <Side side, Missing missing>
Result FindMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("find", {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const Window window, WindowOf(context, self, bound));
  ASSIGN_OR_RETURN(const Text needle, TextOr(bound[0], "sub", Text()));
  const std::string_view view = window.text.view();
  context.budget.SpendScan(view.size());
  const size_t found =
      side == Side::kLeft ? FindText(view, needle.view()) : view.rfind(needle.view());
  if (found != std::string_view::npos) {
    return Value(window.begin + CountCharacters(view.substr(0, found)));
  }
  if (missing == Missing::kError) return InvalidArgument("substring not found");
  return Value(int64_t{-1});
}

Result CountMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("count", {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const Window window, WindowOf(context, self, bound));
  ASSIGN_OR_RETURN(const Text needle, TextOr(bound[0], "sub", Text()));
  const std::string_view view = window.text.view();
  if (needle.empty()) return Value(CountCharacters(view) + 1);
  int64_t count = 0;
  for (size_t at = FindText(view, needle.view());
       at != std::string_view::npos && context.budget.Spend(1);
       at = FindText(view, needle.view(), at + needle.size())) {
    ++count;
  }
  return Value(count);
}

Result ReplaceMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("replace", {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const Text old, TextOr(bound[0], "old", Text()));
  ASSIGN_OR_RETURN(const Text with, TextOr(bound[1], "new", Text()));
  ASSIGN_OR_RETURN(const int64_t count, IntegerOr(bound[2], "count", -1));
  return Value(Replace(context, self.text(), old, with, count));
}

template <Side side>
Result RemoveAffixMethod(const Context&, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("removeprefix", {"affix"}, 1));
  ASSIGN_OR_RETURN(const Text affix, TextOr(bound[0], "affix", Text()));
  const Text& text = self.text();
  if (side == Side::kLeft) {
    return text.view().starts_with(affix.view()) ? Value(text.Slice(affix.size(), text.size()))
                                                 : self;
  }
  return text.view().ends_with(affix.view()) ? Value(text.Slice(0, text.size() - affix.size()))
                                             : self;
}

Result JoinMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("join", {"iterable"}, 1));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, bound[0]));
  TextBuilder out(context.budget);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) {
      return InvalidArgument("sequence item {}: expected str instance, {} found", i,
                             items[i].TypeName());
    }
    if (i > 0) out.Append(self.text());
    out.Append(items[i].text());
  }
  return Value(out.Take());
}

Result FormatMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(Text text, FormatBraces(context, self.text(), arguments));
  return Value(std::move(text));
}

// Padding up to a width in characters, on the side named.
template <Side side>
Result PadMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("just", {"width", "fillchar"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, IntegerOr(bound[0], "width", 0));
  ASSIGN_OR_RETURN(const Text fill, TextOr(bound[1], "fillchar", Text(" ", Origin::kTemplate)));
  if (CountCharacters(fill.view()) != 1) {
    return InvalidArgument("the fill character must be exactly one character long");
  }
  const int64_t missing = std::max<int64_t>(0, width - CountCharacters(self.text().view()));
  int64_t left = side == Side::kLeft ? missing : 0;
  // As CPython centres: an odd rest goes left if the width is odd too.
  if (side == Side::kBoth) left = missing / 2 + (missing & width & 1);
  TextBuilder out(context.budget);
  for (int64_t i = 0; i < left && context.budget.Spend(1); ++i) out.Append(fill);
  out.Append(self.text());
  for (int64_t i = left; i < missing && context.budget.Spend(1); ++i) out.Append(fill);
  return Value(out.Take());
}

enum class Class { kAlpha, kDigit, kAlnum, kSpace };

bool HasClass(uint32_t c, Class wanted) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  const bool alpha = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
  const bool digit = category == UTF8PROC_CATEGORY_ND;
  if (wanted == Class::kSpace) return IsSpace(c);
  if (wanted == Class::kAlpha) return alpha;
  if (wanted == Class::kDigit) return digit;
  return alpha || digit;
}

template <Class wanted>
Result ClassMethod(const Context& context, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(NoArguments(arguments, "str"));
  const std::string_view view = self.text().view();
  context.budget.SpendScan(view.size());
  for (size_t at = 0; at < view.size(); at += DecodeAt(view, at).size) {
    if (!HasClass(DecodeAt(view, at).value, wanted)) return Value(false);
  }
  return Value(!view.empty());
}

template <Case wanted>
Result IsCaseMethod(const Context& context, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(NoArguments(arguments, "str"));
  const Text& text = self.text();
  const Case other = wanted == Case::kLower ? Case::kUpper : Case::kLower;
  return Value(ChangeCase(context, text, wanted) == text &&
               !(ChangeCase(context, text, other) == text));
}

Result ZeroFillMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("zfill", {"width"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, IntegerOr(bound[0], "width", 0));
  const Text& text = self.text();
  const size_t sign = text.view().starts_with('-') || text.view().starts_with('+') ? 1 : 0;
  TextBuilder out(context.budget);
  out.Append(text.Slice(0, sign));
  for (int64_t i = CountCharacters(text.view()); i < width && context.budget.Spend(1); ++i) {
    out.Append("0", Origin::kTemplate);
  }
  return Value(out.Append(text.Slice(sign, text.size())).Take());
}

enum class View { kKeys, kValues, kItems };

template <View view>
Result ViewMethod(const Context& context, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(NoArguments(arguments, "dict"));
  std::vector<Value> items;
  if (!context.budget.SpendItems(self.dict().entries().size())) return Value();
  for (const auto& [key, value] : self.dict().entries()) {
    if (view == View::kKeys) items.push_back(key);
    if (view == View::kValues) items.push_back(value);
    if (view == View::kItems) items.push_back(MakeList(List::Kind::kTuple, {key, value}));
  }
  constexpr List::Kind kKinds[] = {List::Kind::kKeys, List::Kind::kValues, List::Kind::kItems};
  return MakeList(kKinds[static_cast<size_t>(view)], std::move(items));
}

Result GetMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("get", {"key", "default"}, 1));
  context.budget.Spend(1);
  const Value* found = self.dict().Find(bound[0]);
  if (found != nullptr) return *found;
  return arguments.positional.size() + arguments.keywords.size() > 1 ? bound[1] : Value();
}

Result CopyMethod(const Context&, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(NoArguments(arguments, "copy"));
  return self;  // values never change, so a copy is the same value
}

Result ListIndexMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("index", {"value"}, 1));
  const auto& items = self.list().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (Equal(items[i], bound[0], context.budget)) return Value(static_cast<int64_t>(i));
  }
  return InvalidArgument("value is not in the list");
}

Result ListCountMethod(const Context& context, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("count", {"value"}, 1));
  int64_t count = 0;
  for (const Value& item : self.list().items) count += Equal(item, bound[0], context.budget);
  return Value(count);
}

Result CycleMethod(const Context&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) return InvalidArgument("no items for cycling given");
  return arguments.positional[self.loop()->index % arguments.positional.size()];
}

constexpr std::pair<std::string_view, Method> kStringMethods[] = {
    {"capitalize", CaseMethod<Case::kCapitalize>},
    {"center", PadMethod<Side::kBoth>},
    {"count", CountMethod},
    {"endswith", AffixMethod<Side::kRight>},
    {"find", FindMethod<Side::kLeft, Missing::kMinusOne>},
    {"format", FormatMethod},
    {"index", FindMethod<Side::kLeft, Missing::kError>},
    {"isalnum", ClassMethod<Class::kAlnum>},
    {"isalpha", ClassMethod<Class::kAlpha>},
    {"isdecimal", ClassMethod<Class::kDigit>},
    {"isdigit", ClassMethod<Class::kDigit>},
    {"islower", IsCaseMethod<Case::kLower>},
    {"isspace", ClassMethod<Class::kSpace>},
    {"isupper", IsCaseMethod<Case::kUpper>},
    {"join", JoinMethod},
    {"ljust", PadMethod<Side::kRight>},
    {"lower", CaseMethod<Case::kLower>},
    {"lstrip", StripMethod<Side::kLeft>},
    {"partition", PartitionMethod<Side::kLeft>},
    {"removeprefix", RemoveAffixMethod<Side::kLeft>},
    {"removesuffix", RemoveAffixMethod<Side::kRight>},
    {"replace", ReplaceMethod},
    {"rfind", FindMethod<Side::kRight, Missing::kMinusOne>},
    {"rindex", FindMethod<Side::kRight, Missing::kError>},
    {"rjust", PadMethod<Side::kLeft>},
    {"rpartition", PartitionMethod<Side::kRight>},
    {"rsplit", SplitMethod<SplitFromRight>},
    {"rstrip", StripMethod<Side::kRight>},
    {"split", SplitMethod<Split>},
    {"splitlines", SplitLinesMethod},
    {"startswith", AffixMethod<Side::kLeft>},
    {"strip", StripMethod<Side::kBoth>},
    {"swapcase", CaseMethod<Case::kSwap>},
    {"title", CaseMethod<Case::kTitle>},
    {"upper", CaseMethod<Case::kUpper>},
    {"zfill", ZeroFillMethod},
    // Python has these; here they are refused when called, never taken for a missing attribute.
    {"casefold", nullptr},
    {"encode", nullptr},
    {"expandtabs", nullptr},
    {"format_map", nullptr},
    {"isascii", nullptr},
    {"isidentifier", nullptr},
    {"isnumeric", nullptr},
    {"isprintable", nullptr},
    {"istitle", nullptr},
    {"maketrans", nullptr},
    {"translate", nullptr},
};

constexpr std::pair<std::string_view, Method> kDictMethods[] = {
    {"copy", CopyMethod},
    {"fromkeys", nullptr},
    {"get", GetMethod},
    {"items", ViewMethod<View::kItems>},
    {"keys", ViewMethod<View::kKeys>},
    {"values", ViewMethod<View::kValues>},
};

constexpr std::pair<std::string_view, Method> kListMethods[] = {
    {"copy", CopyMethod},
    {"count", ListCountMethod},
    {"index", ListIndexMethod},
};

constexpr std::pair<std::string_view, Method> kLoopMethods[] = {{"cycle", CycleMethod}};

// The entry of a method, or nullptr if the type has no such method.
const std::pair<std::string_view, Method>* FindMethodOf(const Value& object,
                                                        std::string_view name) {
  const auto search = [name](const auto& table) -> const std::pair<std::string_view, Method>* {
    for (const auto& entry : table) {
      if (entry.first == name) return &entry;
    }
    return nullptr;
  };
  if (object.is_string()) return search(kStringMethods);
  if (object.is_dict()) return search(kDictMethods);
  if (object.loop() != nullptr) return search(kLoopMethods);
  if (!object.is_list() || !object.list().indexable()) return nullptr;
  if (name == "copy" && object.list().kind != List::Kind::kList) return nullptr;
  return search(kListMethods);
}

}  // namespace

bool IsMethod(const Value& object, std::string_view name) {
  return FindMethodOf(object, name) != nullptr;
}

bool IsUnsafe(const Value& object, std::string_view name) {
  constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  constexpr std::string_view kList[] = {"append", "clear",   "extend", "insert",
                                        "pop",    "reverse", "remove", "sort"};
  if (object.is_dict())
    return std::find(std::begin(kDict), std::end(kDict), name) != std::end(kDict);
  if (!object.is_list() || object.list().kind != List::Kind::kList) return false;
  return std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
}

absl::StatusOr<Value> CallMethod(const Context& context, const Callable& method,
                                 const Arguments& arguments) {
  const auto* found = FindMethodOf(method.self, method.name);
  if (found == nullptr || found->second == nullptr) {
    return InvalidArgument("the method '{}' of '{}' is not supported", method.name,
                           method.self.TypeName());
  }
  return found->second(context, method.self, arguments);
}

}  // namespace polyreme::text::jinja
