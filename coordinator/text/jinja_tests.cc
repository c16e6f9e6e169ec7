// Tests: what may stand behind `is`.
#include <algorithm>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

using Test = bool (*)(const Context&, const Value&);

bool IsSequence(const Value& value) {
  return value.is_string() || value.is_dict() || value.is_undefined() ||
         (value.is_list() && value.list().indexable());
}

bool IsIterable(const Value& value) {
  return value.is_string() || value.is_dict() || value.is_undefined() || value.is_list() ||
         value.loop() != nullptr;
}

bool IsTruth(const Value& value, bool truth) {
  return value.is_bool() && (value.as_int() != 0) == truth;
}

template <Case to>
bool HasCase(const Context& context, const Value& value) {
  const Text text = Str(value, context.budget);
  const Case other = to == Case::kLower ? Case::kUpper : Case::kLower;
  return ChangeCase(context, text, to) == text && !(ChangeCase(context, text, other) == text);
}

constexpr std::pair<std::string_view, Test> kTests[] = {
    {"boolean", [](const Context&, const Value& value) { return value.is_bool(); }},
    {"callable",
     [](const Context&, const Value& value) {
       return value.callable() != nullptr || value.is_undefined();
     }},
    {"defined", [](const Context&, const Value& value) { return !value.is_undefined(); }},
    {"escaped", [](const Context&, const Value&) { return false; }},
    {"false", [](const Context&, const Value& value) { return IsTruth(value, false); }},
    {"float", [](const Context&, const Value& value) { return value.is_float(); }},
    {"integer",
     [](const Context&, const Value& value) { return value.is_int() && !value.is_bool(); }},
    {"iterable", [](const Context&, const Value& value) { return IsIterable(value); }},
    {"lower", HasCase<Case::kLower>},
    {"mapping", [](const Context&, const Value& value) { return value.is_dict(); }},
    {"none", [](const Context&, const Value& value) { return value.is_none(); }},
    {"number", [](const Context&, const Value& value) { return value.is_number(); }},
    {"sequence", [](const Context&, const Value& value) { return IsSequence(value); }},
    {"string", [](const Context&, const Value& value) { return value.is_string(); }},
    {"true", [](const Context&, const Value& value) { return IsTruth(value, true); }},
    {"undefined", [](const Context&, const Value& value) { return value.is_undefined(); }},
    {"upper", HasCase<Case::kUpper>},
};

constexpr std::pair<std::string_view, Operator> kComparisons[] = {
    {"!=", Operator::kNotEqual},     {"<", Operator::kLess},
    {"<=", Operator::kLessEqual},    {"==", Operator::kEqual},
    {">", Operator::kGreater},       {">=", Operator::kGreaterEqual},
    {"eq", Operator::kEqual},        {"equalto", Operator::kEqual},
    {"ge", Operator::kGreaterEqual}, {"greaterthan", Operator::kGreater},
    {"gt", Operator::kGreater},      {"in", Operator::kIn},
    {"le", Operator::kLessEqual},    {"lessthan", Operator::kLess},
    {"lt", Operator::kLess},         {"ne", Operator::kNotEqual},
};

absl::StatusOr<bool> IsDivisible(const Context& context, const Value& value, const Value& divisor) {
  ASSIGN_OR_RETURN(const Value rest, ApplyBinary(context, Operator::kModulo, value, divisor));
  return !rest.Truthy();
}

// Whether two values are one object, as far as templates can tell: constants and small numbers.
absl::StatusOr<bool> IsSame(const Context& context, const Value& a, const Value& b) {
  return a.TypeName() == b.TypeName() && Equal(a, b, context.budget);
}

}  // namespace

absl::StatusOr<bool> ApplyTest(const Context& context, std::string_view name, const Value& value,
                               const Arguments& arguments) {
  context.budget.Spend(1);
  for (const auto& [known, test] : kTests) {
    if (known != name) continue;
    RETURN_IF_ERROR(arguments.Bind(name, {}).status());
    return test(context, value);
  }
  if (name == "odd" || name == "even") {
    RETURN_IF_ERROR(arguments.Bind(name, {}).status());
    ASSIGN_OR_RETURN(const bool even, IsDivisible(context, value, Value(int64_t{2})));
    return even == (name == "even");
  }
  for (const auto& [known, op] : kComparisons) {
    if (known != name) continue;
    ASSIGN_OR_RETURN(const auto bound, arguments.Bind(name, {"other"}));
    return ApplyComparison(context, op, value, bound[0]);
  }
  if (name == "divisibleby") {
    ASSIGN_OR_RETURN(const auto bound, arguments.Bind(name, {"num"}));
    return IsDivisible(context, value, bound[0]);
  }
  if (name == "sameas") {
    ASSIGN_OR_RETURN(const auto bound, arguments.Bind(name, {"other"}));
    return IsSame(context, value, bound[0]);
  }
  return InvalidArgument("the test '{}' is unknown or not supported", name);
}

}  // namespace polyreme::text::jinja
