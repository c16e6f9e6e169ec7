// What templates can do to values: operators, attributes, methods, filters, tests and functions, as
// Python and Jinja define them. What is not here is refused by name.
//
// Errors are InvalidArgument without a line; the interpreter adds it. When the budget runs out a
// result may be cut short: the interpreter looks at the budget before it uses one.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_value.h"

namespace polyreme::text::jinja {

struct Context {
  Budget& budget;
  absl::Time now;  // what strftime_now() shows
  absl::TimeZone time_zone;
};

// The evaluated arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  // One value per parameter, undefined where none was given. Refuses what has no parameter, and
  // fewer arguments than the first `required` parameters need.
  absl::StatusOr<std::vector<Value>> Bind(std::string_view function,
                                          std::initializer_list<std::string_view> names,
                                          size_t required = 0) const;
};

// An argument as an integer, a string or a truth; `otherwise` where none was given.
absl::StatusOr<int64_t> IntegerOr(const Value& value, std::string_view name, int64_t otherwise);
absl::StatusOr<Text> TextOr(const Value& value, std::string_view name, Text otherwise);
bool TruthOr(const Value& value, bool otherwise);

// jinja_access.cc. A missing attribute or element is an undefined value, not an error.
absl::StatusOr<Value> GetAttribute(const Context& context, const Value& object,
                                   std::string_view name);
absl::StatusOr<Value> GetItem(const Context& context, const Value& object, const Value& key);
struct SliceBounds {
  Value begin, end, step;  // None where left out
};
absl::StatusOr<Value> GetSlice(const Context& context, const Value& object,
                               const SliceBounds& bounds);
// What `for` would walk: items, characters, keys. Uses up a generator.
absl::StatusOr<std::vector<Value>> Iterate(const Context& context, const Value& value);
absl::StatusOr<int64_t> Length(const Context& context, const Value& value);
// "a.b.0", as the filters' attribute arguments spell a path.
absl::StatusOr<Value> GetPath(const Context& context, const Value& object, const Value& path);

// jinja_operators.cc
absl::StatusOr<Value> ApplyBinary(const Context& context, Operator op, const Value& a,
                                  const Value& b);
absl::StatusOr<bool> ApplyComparison(const Context& context, Operator op, const Value& a,
                                     const Value& b);
absl::StatusOr<Value> Negate(const Value& value);

// jinja_format.cc: "%s" % values and "{}".format(values).
absl::StatusOr<Text> FormatPercent(const Context& context, const Text& format, const Value& values);
absl::StatusOr<Text> FormatBraces(const Context& context, const Text& format,
                                  const Arguments& arguments);

// jinja_strings.cc: operations on text that methods and filters share.
enum class Case { kUpper, kLower, kTitle, kCapitalize, kSwap };
enum class Side { kLeft, kRight, kBoth };
Text ChangeCase(const Context& context, const Text& text, Case to);
// Without characters: white space.
Text Strip(const Text& text, Side side, const Text* characters);
Text Replace(const Context& context, const Text& text, const Text& old, const Text& with,
             int64_t count);
std::vector<Value> SplitLines(const Context& context, const Text& text, bool keep_ends);
// At white space if the separator is null. `limit` < 0: no limit.
std::vector<Value> Split(const Context& context, const Text& text, const Text* separator,
                         int64_t limit);
std::vector<Value> SplitFromRight(const Context& context, const Text& text, const Text* separator,
                                  int64_t limit);

// jinja_methods.cc
bool IsMethod(const Value& object, std::string_view name);
// Methods that Python has but that change the object: the sandbox refuses them.
bool IsUnsafe(const Value& object, std::string_view name);
absl::StatusOr<Value> CallMethod(const Context& context, const Callable& method,
                                 const Arguments& arguments);

// jinja_filters.cc, jinja_sequence_filters.cc, jinja_tests.cc, jinja_functions.cc
absl::StatusOr<Value> ApplyFilter(const Context& context, std::string_view name, const Value& value,
                                  const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(const Context& context, std::string_view name, const Value& value,
                               const Arguments& arguments);
bool IsFunction(std::string_view name);
absl::StatusOr<Value> CallFunction(const Context& context, std::string_view name,
                                   const Arguments& arguments);

using Filter = absl::StatusOr<Value> (*)(const Context&, const Value&, const Arguments&);
// nullptr if there is no such filter over sequences.
Filter FindSequenceFilter(std::string_view name);

// jinja_json.cc: the filter tojson, as Python's json.dumps prints.
absl::StatusOr<Value> ToJson(const Context& context, const Value& value,
                             const Arguments& arguments);

}  // namespace polyreme::text::jinja
