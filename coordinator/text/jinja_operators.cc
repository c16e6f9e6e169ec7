#include <cmath>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

std::string_view Symbol(Operator op) {
  constexpr std::string_view kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(op)];
}

absl::Status Unsupported(Operator op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) {
      const auto& message = value->undefined().message;
      return InvalidArgument("{}", message != nullptr ? *message : "value is undefined");
    }
  }
  if (op >= Operator::kEqual) {
    return InvalidArgument("'{}' not supported between instances of '{}' and '{}'", Symbol(op),
                           a.TypeName(), b.TypeName());
  }
  return InvalidArgument("unsupported operand type(s) for {}: '{}' and '{}'", Symbol(op),
                         a.TypeName(), b.TypeName());
}

absl::Status TooLarge(Operator op) {
  return InvalidArgument("the result of {} does not fit 64 bits", Symbol(op));
}

absl::StatusOr<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0)
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      return TooLarge(Operator::kPower);
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      return TooLarge(Operator::kPower);
    }
  }
  return Value(result);
}

absl::StatusOr<Value> IntegerDivision(Operator op, int64_t a, int64_t b) {
  if (b == 0) return InvalidArgument("integer division or modulo by zero");
  if (a == INT64_MIN && b == -1) {
    if (op == Operator::kModulo) return Value(int64_t{0});
    return TooLarge(op);
  }
  const int64_t remainder = a % b;
  // C++ rounds towards zero, Python down.
  const bool lower = remainder != 0 && ((remainder < 0) != (b < 0));
  if (op == Operator::kModulo) return Value(lower ? remainder + b : remainder);
  return Value(lower ? a / b - 1 : a / b);
}

absl::StatusOr<Value> IntegerArithmetic(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case Operator::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Operator::kDivide:
      if (b == 0) return InvalidArgument("division by zero");
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kPower:
      return IntegerPower(a, b);
    default:
      return IntegerDivision(op, a, b);
  }
  if (overflow) return TooLarge(op);
  return Value(result);
}

absl::StatusOr<Value> FloatArithmetic(Operator op, double a, double b) {
  if (b == 0 &&
      (op == Operator::kDivide || op == Operator::kFloorDivide || op == Operator::kModulo)) {
    return InvalidArgument("float division by zero");
  }
  switch (op) {
    case Operator::kAdd:
      return Value(a + b);
    case Operator::kSubtract:
      return Value(a - b);
    case Operator::kMultiply:
      return Value(a * b);
    case Operator::kDivide:
      return Value(a / b);
    case Operator::kFloorDivide:
      return Value(std::floor(a / b));
    case Operator::kPower:
      return Value(std::pow(a, b));
    default: {
      const double remainder = std::fmod(a, b);
      return Value(remainder != 0 && ((remainder < 0) != (b < 0)) ? remainder + b : remainder);
    }
  }
}

Value ConcatenateLists(const Context& context, const List& a, const List& b) {
  if (!context.budget.SpendItems(a.items.size() + b.items.size())) return Value();
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return MakeList(a.kind, std::move(items));
}

Value RepeatText(const Context& context, const Text& text, int64_t times) {
  TextBuilder out(context.budget);
  for (int64_t i = 0; i < times && !text.empty() && context.budget.Spend(1); ++i) {
    out.Append(text);
  }
  return Value(out.Take());
}

Value RepeatList(const Context& context, const List& list, int64_t times) {
  std::vector<Value> items;
  for (int64_t i = 0; i < times && !list.items.empty(); ++i) {
    if (!context.budget.SpendItems(list.items.size())) break;
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return MakeList(list.kind, std::move(items));
}

bool IsSequence(const Value& value) {
  return value.is_list() && value.list().kind <= List::Kind::kTuple;
}

absl::StatusOr<bool> Contains(const Context& context, const Value& item, const Value& container) {
  if (container.is_string()) {
    if (!item.is_string()) {
      return InvalidArgument("'in <string>' requires string as left operand, not {}",
                             item.TypeName());
    }
    context.budget.SpendScan(container.text().size());
    return FindText(container.text().view(), item.text().view()) != std::string_view::npos;
  }
  if (container.is_dict()) {
    context.budget.Spend(1);
    if (!Dict::IsHashable(item) && !item.is_undefined()) {
      return InvalidArgument("unhashable type: '{}'", item.TypeName());
    }
    return !item.is_undefined() && container.dict().Find(item) != nullptr;
  }
  if (!container.is_list() && !container.is_undefined()) {
    return InvalidArgument("argument of type '{}' is not iterable", container.TypeName());
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context, container));
  for (const Value& candidate : items) {
    if (Equal(candidate, item, context.budget)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<Value> ApplyBinary(const Context& context, Operator op, const Value& a,
                                  const Value& b) {
  if (a.is_int() && b.is_int()) return IntegerArithmetic(op, a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return FloatArithmetic(op, a.as_double(), b.as_double());
  if (op == Operator::kAdd && a.is_string() && b.is_string()) {
    return Value(TextBuilder(context.budget).Append(a.text()).Append(b.text()).Take());
  }
  if (op == Operator::kAdd && IsSequence(a) && IsSequence(b) && a.list().kind == b.list().kind) {
    return ConcatenateLists(context, a.list(), b.list());
  }
  if (op == Operator::kModulo && a.is_string()) {
    ASSIGN_OR_RETURN(Text text, FormatPercent(context, a.text(), b));
    return Value(std::move(text));
  }
  if (op == Operator::kMultiply && (a.is_int() || b.is_int())) {
    const Value& repeated = a.is_int() ? b : a;
    const int64_t times = a.is_int() ? a.as_int() : b.as_int();
    if (repeated.is_string()) return RepeatText(context, repeated.text(), times);
    if (IsSequence(repeated)) return RepeatList(context, repeated.list(), times);
  }
  return Unsupported(op, a, b);
}

absl::StatusOr<bool> ApplyComparison(const Context& context, Operator op, const Value& a,
                                     const Value& b) {
  switch (op) {
    case Operator::kEqual:
      return Equal(a, b, context.budget);
    case Operator::kNotEqual:
      return !Equal(a, b, context.budget);
    case Operator::kIn:
      return Contains(context, a, b);
    case Operator::kNotIn: {
      ASSIGN_OR_RETURN(const bool contains, Contains(context, a, b));
      return !contains;
    }
    default:
      break;
  }
  const auto order = Compare(a, b, context.budget);
  if (!order.has_value()) return Unsupported(op, a, b);
  if (op == Operator::kLess) return *order < 0;
  if (op == Operator::kLessEqual) return *order <= 0;
  if (op == Operator::kGreater) return *order > 0;
  return *order >= 0;
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.is_float()) return Value(-value.as_double());
  if (!value.is_int()) {
    if (value.is_undefined()) return Unsupported(Operator::kSubtract, value, value);
    return InvalidArgument("bad operand type for unary -: '{}'", value.TypeName());
  }
  if (value.as_int() == INT64_MIN) return TooLarge(Operator::kSubtract);
  return Value(-value.as_int());
}

}  // namespace polyreme::text::jinja
