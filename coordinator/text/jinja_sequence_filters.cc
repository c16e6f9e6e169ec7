// Filters over lists, dicts and the characters of a string.
#include <algorithm>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// What is left of a filter's arguments behind the first `used`.
Arguments Rest(const Arguments& arguments, size_t used) {
  Arguments rest;
  const auto begin = arguments.positional.begin();
  rest.positional.assign(begin + static_cast<std::ptrdiff_t>(used), arguments.positional.end());
  rest.keywords = arguments.keywords;
  return rest;
}

// What sorting and comparing look at: an attribute, and strings without regard to case.
struct Key {
  Value attribute = Value(Undefined{});
  bool case_sensitive = false;

  Result Of(const Context& context, const Value& item) const {
    Value key = item;
    if (!attribute.is_undefined() && !attribute.is_none()) {
      ASSIGN_OR_RETURN(key, GetPath(context, item, attribute));
    }
    if (case_sensitive || !key.is_string()) return key;
    return Value(ChangeCase(context, key.text(), Case::kLower));
  }
};

enum class Direction { kUp, kDown };

// Sorts stably by keys; refuses keys without an order.
absl::StatusOr<std::vector<Value>> SortBy(const Context& context, const std::vector<Value>& items,
                                          const Key& key, Direction direction) {
  std::vector<std::pair<Value, size_t>> keyed;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value of, key.Of(context, items[i]));
    keyed.emplace_back(std::move(of), i);
  }
  absl::Status failure;
  // Once it fails it calls everything equal, which ends the sort safely.
  const auto less = [&](const Value& a, const Value& b) {
    if (!failure.ok()) return false;
    const absl::StatusOr<bool> result = ApplyComparison(context, Operator::kLess, a, b);
    if (!result.ok()) failure = result.status();
    return result.ok() && *result;
  };
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return direction == Direction::kUp ? less(a.first, b.first) : less(b.first, a.first);
  });
  RETURN_IF_ERROR(failure);
  std::vector<Value> sorted;
  for (const auto& [of, index] : keyed) sorted.push_back(items[index]);
  return sorted;
}

Result SortFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   arguments.Bind("sort", {"reverse", "case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  const Key key{bound[2], TruthOr(bound[1], false)};
  const Direction direction = TruthOr(bound[0], false) ? Direction::kDown : Direction::kUp;
  ASSIGN_OR_RETURN(auto sorted, SortBy(context, items, key, direction));
  return MakeList(List::Kind::kList, std::move(sorted));
}

Result DictSortFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   arguments.Bind("dictsort", {"case_sensitive", "by", "reverse"}));
  if (!value.is_dict()) return InvalidArgument("dictsort expects a dict, got {}", value.TypeName());
  ASSIGN_OR_RETURN(const Text by, TextOr(bound[1], "by", Text("key", Origin::kTemplate)));
  if (by.view() != "key" && by.view() != "value") {
    return InvalidArgument("dictsort: you can only sort by either \"key\" or \"value\"");
  }
  std::vector<Value> items;
  for (const auto& [name, item] : value.dict().entries()) {
    items.push_back(MakeList(List::Kind::kTuple, {name, item}));
  }
  const Key key{Value(int64_t{by.view() == "key" ? 0 : 1}), TruthOr(bound[0], false)};
  const Direction direction = TruthOr(bound[2], false) ? Direction::kDown : Direction::kUp;
  ASSIGN_OR_RETURN(auto sorted, SortBy(context, items, key, direction));
  return MakeList(List::Kind::kList, std::move(sorted));
}

Result UniqueFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("unique", {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  const Key key{bound[1], TruthOr(bound[0], false)};
  Dict seen;
  std::vector<Value> unique;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value of, key.Of(context, item));
    if (!Dict::IsHashable(of)) return InvalidArgument("unhashable type: '{}'", of.TypeName());
    context.budget.Spend(1);
    if (seen.Find(of) != nullptr) continue;
    seen.Set(of, Value());
    unique.push_back(item);
  }
  return MakeList(List::Kind::kGenerator, std::move(unique));
}

template <Operator better>
Result ExtremeFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("min", {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  if (items.empty()) return MakeUndefined("no aggregated item, sequence was empty");
  const Key key{bound[1], TruthOr(bound[0], false)};
  size_t best = 0;
  ASSIGN_OR_RETURN(Value best_key, key.Of(context, items[0]));
  for (size_t i = 1; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value of, key.Of(context, items[i]));
    ASSIGN_OR_RETURN(const bool improves, ApplyComparison(context, better, of, best_key));
    if (!improves) continue;
    best = i;
    best_key = std::move(of);
  }
  return items[best];
}

Result SumFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("sum", {"attribute", "start"}));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  Value sum = bound[1].is_undefined() ? Value(int64_t{0}) : bound[1];
  for (const Value& item : items) {
    Value term = item;
    if (!bound[0].is_undefined() && !bound[0].is_none()) {
      ASSIGN_OR_RETURN(term, GetPath(context, item, bound[0]));
    }
    ASSIGN_OR_RETURN(sum, ApplyBinary(context, Operator::kAdd, sum, term));
  }
  return sum;
}

Result JoinFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("join", {"d", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  const Text separator = Str(bound[0], context.budget);
  TextBuilder out(context.budget);
  for (size_t i = 0; i < items.size() && !context.budget.exhausted(); ++i) {
    if (i > 0) out.Append(separator);
    Value item = items[i];
    if (!bound[1].is_undefined() && !bound[1].is_none()) {
      ASSIGN_OR_RETURN(item, GetPath(context, item, bound[1]));
    }
    AppendStr(item, context.budget, out);
  }
  return Value(out.Take());
}

// map(attribute=...[, default=...]) or map('filter', arguments). Of nothing, even of none, it gives
// nothing.
Result MapFilter(const Context& context, const Value& value, const Arguments& arguments) {
  if (!value.Truthy()) return MakeList(List::Kind::kGenerator, {});
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    ASSIGN_OR_RETURN(const auto bound, arguments.Bind("map", {"attribute", "default"}));
    if (bound[0].is_undefined()) {
      return InvalidArgument("map requires a filter argument or an attribute");
    }
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value attribute, GetPath(context, item, bound[0]));
      if (attribute.is_undefined() && !bound[1].is_undefined()) attribute = bound[1];
      mapped.push_back(std::move(attribute));
    }
    return MakeList(List::Kind::kGenerator, std::move(mapped));
  }
  ASSIGN_OR_RETURN(const Text name, TextOr(arguments.positional[0], "filter", Text()));
  const Arguments rest = Rest(arguments, 1);
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value result, ApplyFilter(context, name.view(), item, rest));
    mapped.push_back(std::move(result));
  }
  return MakeList(List::Kind::kGenerator, std::move(mapped));
}

enum class Looks { kAtItem, kAtAttribute };
enum class Keeps { kMatches, kOthers };

// select, reject, selectattr, rejectattr: by a named test, or by truth if none is named.
template <Looks looks, Keeps keeps>
Result SelectFilter(const Context& context, const Value& value, const Arguments& arguments) {
  if (!value.Truthy()) return MakeList(List::Kind::kGenerator, {});
  const size_t test_at = looks == Looks::kAtAttribute ? 1 : 0;
  if (arguments.positional.size() < test_at) {
    return InvalidArgument("missing parameter for attribute name");
  }
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  Text test;
  Arguments rest;
  if (arguments.positional.size() > test_at) {
    ASSIGN_OR_RETURN(test, TextOr(arguments.positional[test_at], "test", Text()));
    rest = Rest(arguments, test_at + 1);
  }
  std::vector<Value> kept;
  for (const Value& item : items) {
    Value subject = item;
    if (looks == Looks::kAtAttribute) {
      ASSIGN_OR_RETURN(subject, GetPath(context, item, arguments.positional[0]));
    }
    bool matches = subject.Truthy();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(matches, ApplyTest(context, test.view(), subject, rest));
    }
    if (matches == (keeps == Keeps::kMatches)) kept.push_back(item);
  }
  return MakeList(List::Kind::kGenerator, std::move(kept));
}

Result FirstFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("first", {}).status());
  if (value.is_string()) {
    const Text& text = value.text();
    if (!text.empty()) return Value(text.Slice(0, DecodeAt(text.view(), 0).size));
    return MakeUndefined("no first item, sequence was empty");
  }
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  return items.empty() ? MakeUndefined("no first item, sequence was empty") : items.front();
}

absl::Status CheckReversible(const Value& value) {
  if (value.is_list() && value.list().kind == List::Kind::kGenerator) {
    return InvalidArgument("'generator' object is not reversible");
  }
  return absl::OkStatus();
}

Result LastFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("last", {}).status());
  RETURN_IF_ERROR(CheckReversible(value));
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  return items.empty() ? MakeUndefined("no last item, sequence was empty") : items.back();
}

Result ReverseFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("reverse", {}).status());
  if (value.is_string()) {
    return GetSlice(context, value, {Value(), Value(), Value(int64_t{-1})});
  }
  ASSIGN_OR_RETURN(auto items, Iterate(context, value));
  std::reverse(items.begin(), items.end());
  const bool listed = value.is_list() && value.list().kind == List::Kind::kGenerator;
  return MakeList(listed ? List::Kind::kList : List::Kind::kGenerator, std::move(items));
}

Result ListFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("list", {}).status());
  ASSIGN_OR_RETURN(auto items, Iterate(context, value));
  return MakeList(List::Kind::kList, std::move(items));
}

Result LengthFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("length", {}).status());
  ASSIGN_OR_RETURN(const int64_t length, Length(context, value));
  return Value(length);
}

Result ItemsFilter(const Context& context, const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Bind("items", {}).status());
  if (!value.is_dict() && !value.is_undefined()) {
    return InvalidArgument("can only get item pairs from a mapping, got {}", value.TypeName());
  }
  std::vector<Value> pairs;
  if (value.is_dict() && context.budget.SpendItems(value.dict().entries().size())) {
    for (const auto& [key, item] : value.dict().entries()) {
      pairs.push_back(MakeList(List::Kind::kTuple, {key, item}));
    }
  }
  return MakeList(List::Kind::kGenerator, std::move(pairs));
}

Result BatchFilter(const Context& context, const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, arguments.Bind("batch", {"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t size, IntegerOr(bound[0], "linecount", 0));
  if (size <= 0) return InvalidArgument("batch: expected a positive line count, got {}", size);
  ASSIGN_OR_RETURN(const auto items, Iterate(context, value));
  std::vector<Value> batches;
  std::vector<Value> batch;
  const auto flush = [&] {
    batches.push_back(MakeList(List::Kind::kList, std::exchange(batch, {})));
  };
  for (const Value& item : items) {
    if (std::ssize(batch) == size) flush();
    batch.push_back(item);
  }
  if (!batch.empty()) {
    const bool fills = !bound[1].is_undefined() && !bound[1].is_none();
    while (fills && std::ssize(batch) < size && context.budget.Spend(1)) batch.push_back(bound[1]);
    flush();
  }
  return MakeList(List::Kind::kGenerator, std::move(batches));
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"batch", BatchFilter},
    {"count", LengthFilter},
    {"dictsort", DictSortFilter},
    {"first", FirstFilter},
    {"items", ItemsFilter},
    {"join", JoinFilter},
    {"last", LastFilter},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"map", MapFilter},
    {"max", ExtremeFilter<Operator::kGreater>},
    {"min", ExtremeFilter<Operator::kLess>},
    {"reject", SelectFilter<Looks::kAtItem, Keeps::kOthers>},
    {"rejectattr", SelectFilter<Looks::kAtAttribute, Keeps::kOthers>},
    {"reverse", ReverseFilter},
    {"select", SelectFilter<Looks::kAtItem, Keeps::kMatches>},
    {"selectattr", SelectFilter<Looks::kAtAttribute, Keeps::kMatches>},
    {"sort", SortFilter},
    {"sum", SumFilter},
    {"unique", UniqueFilter},
};

}  // namespace

Filter FindSequenceFilter(std::string_view name) {
  for (const auto& [known, function] : kFilters) {
    if (known == name) return function;
  }
  return nullptr;
}

}  // namespace polyreme::text::jinja
