#include <algorithm>
#include <charconv>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

std::string Describe(const Value& object) {
  if (object.is_none()) return "None";
  if (object.name_space() != nullptr) return "namespace object";
  return fmt::format("{} object", object.TypeName());
}

Value MissingAttribute(const Value& object, std::string_view name) {
  return MakeUndefined(fmt::format("'{}' has no attribute '{:.100}'", Describe(object), name));
}

Value MissingItem(const Context& context, const Value& object, const Value& key) {
  if (key.is_string()) return MissingAttribute(object, key.text().view());
  return MakeUndefined(
      fmt::format("{} has no element {:.100}", Describe(object), Repr(key, context.budget).view()));
}

absl::Status LookIntoUndefined(const Value& object) {
  const auto& message = object.undefined().message;
  return InvalidArgument("{}", message != nullptr ? *message : "value is undefined");
}

Value LoopAttribute(const Value& object, std::string_view name) {
  const Loop& loop = *object.loop();
  const auto& items = loop.items->items;
  const auto index = static_cast<int64_t>(loop.index);
  const auto length = static_cast<int64_t>(items.size());
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(length - index);
  if (name == "revindex0") return Value(length - index - 1);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == length);
  if (name == "length") return Value(length);
  // Jinja counts recursion here, of which there is none.
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  if (name == "previtem") {
    return index > 0 ? items[loop.index - 1] : MakeUndefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < length ? items[loop.index + 1] : MakeUndefined("there is no next item");
  }
  if (name == "cycle") return MakeMethod(object, name);
  return MissingAttribute(object, name);
}

// Begin, end and step over `length` elements, by Python's rules for slices.
struct SliceRange {
  int64_t begin = 0, end = 0, step = 1;

  int64_t count() const {
    if (step > 0) return end > begin ? (end - begin - 1) / step + 1 : 0;
    return begin > end ? (begin - end - 1) / -step + 1 : 0;
  }
};

absl::StatusOr<SliceRange> Resolve(const SliceBounds& bounds, int64_t length) {
  for (const Value* bound : {&bounds.begin, &bounds.end, &bounds.step}) {
    if (!bound->is_none() && !bound->is_int()) {
      return InvalidArgument("expected integers in a slice, got {}", bound->TypeName());
    }
  }
  SliceRange range;
  if (!bounds.step.is_none()) range.step = bounds.step.as_int();
  if (range.step == 0) return InvalidArgument("slice step cannot be zero");
  range.step = std::clamp<int64_t>(range.step, -length - 1, length + 1);
  const int64_t low = range.step > 0 ? 0 : -1;
  const int64_t high = range.step > 0 ? length : length - 1;
  const auto place = [&](const Value& bound, int64_t otherwise) {
    if (bound.is_none()) return otherwise;
    const int64_t at = bound.as_int();
    return std::clamp(at < 0 ? at + length : at, low, high);
  };
  range.begin = place(bounds.begin, range.step > 0 ? low : high);
  range.end = place(bounds.end, range.step > 0 ? high : low);
  return range;
}

Value SliceText(const Context& context, const Text& text, const SliceRange& range) {
  const std::string_view view = text.view();
  if (range.step == 1) {
    const size_t begin = OffsetOf(view, range.begin);
    const size_t size = OffsetOf(view.substr(begin), range.end - range.begin);
    return Value(text.Slice(begin, begin + size));
  }
  std::vector<size_t> offsets;
  for (size_t at = 0; at < view.size(); at += DecodeAt(view, at).size) offsets.push_back(at);
  offsets.push_back(view.size());
  TextBuilder out(context.budget);
  for (int64_t i = 0; i < range.count() && context.budget.Spend(1); ++i) {
    const auto at = static_cast<size_t>(range.begin + i * range.step);
    out.Append(text.Slice(offsets[at], offsets[at + 1]));
  }
  return Value(out.Take());
}

absl::StatusOr<Value> TextItem(const Context& context, const Value& object, const Value& key) {
  const Text& text = object.text();
  int64_t index = key.as_int();
  context.budget.SpendScan(text.size());
  if (index < 0) index += CountCharacters(text.view());
  const size_t begin = OffsetOf(text.view(), index);
  if (index < 0 || begin >= text.size()) return MissingItem(context, object, key);
  return Value(text.Slice(begin, begin + DecodeAt(text.view(), begin).size));
}

}  // namespace

absl::StatusOr<Value> GetAttribute(const Context& context, const Value& object,
                                   std::string_view name) {
  if (object.is_undefined()) return LookIntoUndefined(object);
  // Python's own attributes come first, so `x.items` is the method even where a key has that name.
  if (object.loop() != nullptr) return LoopAttribute(object, name);
  if (IsUnsafe(object, name)) {
    return MakeUndefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, object.TypeName()));
  }
  if (IsMethod(object, name)) return MakeMethod(object, name);
  if (object.is_dict()) {
    context.budget.Spend(1);
    const Value* found = object.dict().Find(name);
    return found != nullptr ? *found : MissingAttribute(object, name);
  }
  if (const Namespace* names = object.name_space()) {
    const Value* found = names->Find(name);
    return found != nullptr ? *found : MissingAttribute(object, name);
  }
  if (const Callable* callable = object.callable(); callable != nullptr && name == "name") {
    return FromString(callable->name, Origin::kTemplate);
  }
  return MissingAttribute(object, name);
}

absl::StatusOr<Value> GetItem(const Context& context, const Value& object, const Value& key) {
  if (object.is_undefined()) return LookIntoUndefined(object);
  context.budget.Spend(1);
  if (object.is_dict()) {
    if (const Value* found = object.dict().Find(key)) return *found;
  } else if (object.is_list() && object.list().indexable() && key.is_int()) {
    const auto& items = object.list().items;
    const int64_t index = key.as_int() < 0 ? key.as_int() + std::ssize(items) : key.as_int();
    if (index < 0 || index >= std::ssize(items)) return MissingItem(context, object, key);
    return items[static_cast<size_t>(index)];
  } else if (object.is_string() && key.is_int()) {
    return TextItem(context, object, key);
  }
  if (key.is_string()) return GetAttribute(context, object, key.text().view());
  return MissingItem(context, object, key);
}

absl::StatusOr<Value> GetSlice(const Context& context, const Value& object,
                               const SliceBounds& bounds) {
  if (object.is_undefined()) return LookIntoUndefined(object);
  if (object.is_string()) {
    context.budget.SpendScan(object.text().size());
    ASSIGN_OR_RETURN(const SliceRange range,
                     Resolve(bounds, CountCharacters(object.text().view())));
    return SliceText(context, object.text(), range);
  }
  if (!object.is_list() || !object.list().indexable()) {
    return InvalidArgument("'{}' object cannot be sliced", object.TypeName());
  }
  const List& list = object.list();
  ASSIGN_OR_RETURN(const SliceRange range, Resolve(bounds, std::ssize(list.items)));
  std::vector<Value> items;
  if (!context.budget.Spend(range.count())) return Value();
  for (int64_t i = 0; i < range.count(); ++i) {
    items.push_back(list.items[static_cast<size_t>(range.begin + i * range.step)]);
  }
  return MakeList(list.kind, std::move(items));
}

absl::StatusOr<std::vector<Value>> Iterate(const Context& context, const Value& value) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (value.is_list()) {
    const List& list = value.list();
    if (!context.budget.SpendItems(list.items.size())) return items;
    if (list.kind != List::Kind::kGenerator) return list.items;
    if (!std::exchange(list.consumed, true)) items = list.items;
    return items;
  }
  if (value.is_dict()) {
    if (!context.budget.SpendItems(value.dict().entries().size())) return items;
    for (const auto& [key, item] : value.dict().entries()) items.push_back(key);
    return items;
  }
  if (value.is_string()) {
    const std::string_view view = value.text().view();
    for (size_t at = 0; at < view.size() && context.budget.Spend(1);) {
      const size_t size = DecodeAt(view, at).size;
      items.emplace_back(value.text().Slice(at, at + size));
      at += size;
    }
    return items;
  }
  return InvalidArgument("'{}' object is not iterable", value.TypeName());
}

absl::StatusOr<int64_t> Length(const Context& context, const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) {
    context.budget.SpendScan(value.text().size());
    return CountCharacters(value.text().view());
  }
  if (value.is_dict()) return std::ssize(value.dict().entries());
  if (value.is_list() && value.list().kind != List::Kind::kGenerator) {
    return std::ssize(value.list().items);
  }
  if (const Loop* loop = value.loop()) return std::ssize(loop->items->items);
  return InvalidArgument("object of type '{}' has no len()", value.TypeName());
}

absl::StatusOr<Value> GetPath(const Context& context, const Value& object, const Value& path) {
  if (!path.is_string()) return GetItem(context, object, path);
  Value value = object;
  std::string_view rest = path.text().view();
  while (true) {
    const std::string_view part = rest.substr(0, rest.find('.'));
    int64_t index = 0;
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = error == std::errc() && stop == part.data() + part.size();
    ASSIGN_OR_RETURN(value, GetItem(context, value,
                                    is_index ? Value(index) : FromString(part, Origin::kTemplate)));
    if (part.size() == rest.size()) return value;
    rest.remove_prefix(part.size() + 1);
  }
}

}  // namespace polyreme::text::jinja
