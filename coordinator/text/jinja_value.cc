#include "coordinator/text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace polyreme::text::jinja {
namespace {

std::string_view ViewPrefix(List::Kind kind) {
  if (kind == List::Kind::kKeys) return "dict_keys(";
  if (kind == List::Kind::kValues) return "dict_values(";
  return "dict_items(";
}

// Elements in order, then lengths: shared by == and <.
bool SameItems(const List& a, const List& b, Budget& budget) {
  if (a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (!Equal(a.items[i], b.items[i], budget)) return false;
  }
  return true;
}

bool SameEntries(const Dict& a, const Dict& b, Budget& budget) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = b.Find(key);
    if (other == nullptr || !Equal(value, *other, budget)) return false;
  }
  return true;
}

void AppendReprText(const Text& text, TextBuilder& out) {
  const std::string_view whole = text.view();
  const bool double_quotes =
      whole.find('\'') != std::string_view::npos && whole.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  out.Append(std::string_view(&quote, 1), Origin::kContent);
  text.ForEachRun([&](std::string_view bytes, Origin origin) {
    for (size_t at = 0; at < bytes.size();) {
      const CodePoint c = DecodeAt(bytes, at);
      if (c.value == static_cast<uint32_t>(quote) || c.value == '\\') {
        out.Append("\\", origin).Append(bytes.substr(at, 1), origin);
      } else if (c.value == '\n') {
        out.Append("\\n", origin);
      } else if (c.value == '\r') {
        out.Append("\\r", origin);
      } else if (c.value == '\t') {
        out.Append("\\t", origin);
      } else if (IsPrintable(c.value)) {
        out.Append(bytes.substr(at, c.size), origin);
      } else if (c.value < 0x100) {
        out.Append(fmt::format("\\x{:02x}", c.value), origin);
      } else if (c.value < 0x10000) {
        out.Append(fmt::format("\\u{:04x}", c.value), origin);
      } else {
        out.Append(fmt::format("\\U{:08x}", c.value), origin);
      }
      at += c.size;
    }
  });
  out.Append(std::string_view(&quote, 1), Origin::kContent);
}

void AppendItems(const std::vector<Value>& items, Budget& budget, TextBuilder& out) {
  bool first = true;
  for (const Value& item : items) {
    if (budget.exhausted()) return;
    if (!first) out.Append(", ", Origin::kTemplate);
    first = false;
    AppendRepr(item, budget, out);
  }
}

void AppendReprList(const List& list, Budget& budget, TextBuilder& out) {
  switch (list.kind) {
    case List::Kind::kList:
      out.Append("[", Origin::kTemplate);
      AppendItems(list.items, budget, out);
      out.Append("]", Origin::kTemplate);
      return;
    case List::Kind::kTuple:
      out.Append("(", Origin::kTemplate);
      AppendItems(list.items, budget, out);
      out.Append(list.items.size() == 1 ? ",)" : ")", Origin::kTemplate);
      return;
    case List::Kind::kGenerator:
      out.Append("<generator object>", Origin::kTemplate);
      return;
    case List::Kind::kRange: {
      const auto& items = list.items;
      const int64_t start = items.empty() ? 0 : items[0].as_int();
      const int64_t step = items.size() < 2 ? 1 : items[1].as_int() - start;
      const int64_t stop = start + step * static_cast<int64_t>(items.size());
      out.Append(step == 1 ? fmt::format("range({}, {})", start, stop)
                           : fmt::format("range({}, {}, {})", start, stop, step),
                 Origin::kTemplate);
      return;
    }
    case List::Kind::kKeys:
    case List::Kind::kValues:
    case List::Kind::kItems:
      out.Append(ViewPrefix(list.kind), Origin::kTemplate).Append("[", Origin::kTemplate);
      AppendItems(list.items, budget, out);
      out.Append("])", Origin::kTemplate);
      return;
  }
}

void AppendReprDict(const Dict& dict, Budget& budget, TextBuilder& out) {
  out.Append("{", Origin::kTemplate);
  bool first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (budget.exhausted()) return;
    if (!first) out.Append(", ", Origin::kTemplate);
    first = false;
    AppendRepr(key, budget, out);
    out.Append(": ", Origin::kTemplate);
    AppendRepr(value, budget, out);
  }
  out.Append("}", Origin::kTemplate);
}

void AppendReprNamespace(const Namespace& names, Budget& budget, TextBuilder& out) {
  Dict dict;
  for (const auto& [name, value] : names.attributes) {
    dict.Set(FromString(name, Origin::kTemplate), value);
  }
  out.Append("<Namespace ", Origin::kTemplate);
  AppendReprDict(dict, budget, out);
  out.Append(">", Origin::kTemplate);
}

}  // namespace

Namespace* Value::name_space() const {
  const auto* held = std::get_if<std::shared_ptr<Namespace>>(&value_);
  return held == nullptr ? nullptr : held->get();
}

const Loop* Value::loop() const {
  const auto* held = std::get_if<std::shared_ptr<const Loop>>(&value_);
  return held == nullptr ? nullptr : held->get();
}

const Callable* Value::callable() const {
  const auto* held = std::get_if<std::shared_ptr<const Callable>>(&value_);
  return held == nullptr ? nullptr : held->get();
}

bool Value::Truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_int()) return as_int() != 0;
  if (is_float()) return as_double() != 0.0;
  if (is_string()) return !text().empty();
  if (is_list()) return list().kind == List::Kind::kGenerator || !list().items.empty();
  if (is_dict()) return !dict().entries().empty();
  if (const Loop* held = loop()) return !held->items->items.empty();
  return true;
}

std::string_view Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (is_dict()) return "dict";
  if (name_space() != nullptr) return "Namespace";
  if (loop() != nullptr) return "LoopContext";
  if (const Callable* held = callable()) {
    return held->kind == Callable::Kind::kMacro ? "Macro" : "function";
  }
  constexpr std::string_view kNames[] = {"list",        "tuple",      "range",    "dict_keys",
                                         "dict_values", "dict_items", "generator"};
  return kNames[static_cast<size_t>(list().kind)];
}

int32_t Value::depth() const {
  if (is_list()) return list().depth;
  if (is_dict()) return dict().depth();
  if (const Loop* held = loop()) return held->items->depth + 1;
  if (const Callable* held = callable()) return held->self.depth() + 1;
  return name_space() != nullptr ? 1 : 0;
}

bool Value::reaches_namespace() const {
  if (is_list()) return list().reaches_namespace;
  if (is_dict()) return dict().reaches_namespace();
  if (const Callable* held = callable()) return held->self.reaches_namespace();
  return name_space() != nullptr || loop() != nullptr;
}

Value MakeList(List::Kind kind, std::vector<Value> items) {
  auto list = std::make_shared<List>();
  list->kind = kind;
  for (const Value& item : items) {
    list->depth = std::max(list->depth, item.depth() + 1);
    list->reaches_namespace |= item.reaches_namespace();
  }
  list->items = std::move(items);
  return Value(std::shared_ptr<const List>(std::move(list)));
}

bool Dict::IsHashable(const Value& key) {
  if (key.is_none() || key.is_number() || key.is_string()) return true;
  return key.is_list() && key.list().kind == List::Kind::kTuple &&
         std::all_of(key.list().items.begin(), key.list().items.end(), IsHashable);
}

// One spelling per equal key: 1, 1.0 and True are the same key in Python.
std::string Dict::Spelling(const Value& key) {
  if (key.is_string()) return "s" + key.text().str();
  if (key.is_none()) return "n";
  if (key.is_int()) return fmt::format("i{}", key.as_int());
  if (key.is_float()) {
    const double number = key.as_double();
    if (std::trunc(number) == number && std::abs(number) < 9e18) {
      return fmt::format("i{}", static_cast<int64_t>(number));
    }
    return "f" + ReprFloat(number);
  }
  std::string spelling = "t";
  for (const Value& item : key.list().items) {
    const std::string part = Spelling(item);
    spelling += fmt::format("{}:{}", part.size(), part);
  }
  return spelling;
}

const Dict::Entry* Dict::FindSpelling(const Value& key) const {
  const std::string spelling = Spelling(key);
  if (entries_.size() >= kIndexFrom) {
    const auto found = index_.find(spelling);
    return found == index_.end() ? nullptr : &entries_[found->second];
  }
  for (const Entry& entry : entries_) {
    if (Spelling(entry.first) == spelling) return &entry;
  }
  return nullptr;
}

const Value* Dict::Find(std::string_view key) const {
  if (entries_.size() >= kIndexFrom) {
    const auto found = index_.find("s" + std::string(key));
    return found == index_.end() ? nullptr : &entries_[found->second].second;
  }
  for (const Entry& entry : entries_) {
    if (entry.first.is_string() && entry.first.text().view() == key) return &entry.second;
  }
  return nullptr;
}

const Value* Dict::Find(const Value& key) const {
  if (key.is_string()) return Find(key.text().view());
  if (!IsHashable(key)) return nullptr;
  const Entry* entry = FindSpelling(key);
  return entry == nullptr ? nullptr : &entry->second;
}

void Dict::Set(Value key, Value value) {
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  reaches_namespace_ |= value.reaches_namespace();
  if (const Value* old = Find(key)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() < kIndexFrom) return;
  const size_t first = entries_.size() == kIndexFrom ? 0 : entries_.size() - 1;
  for (size_t i = first; i < entries_.size(); ++i) index_.emplace(Spelling(entries_[i].first), i);
}

Value MakeDict(Dict dict) {
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))));
}

const Value* Namespace::Find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::Set(std::string_view name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  attributes.emplace_back(name, std::move(value));
}

Value MakeMethod(Value self, std::string_view name) {
  auto method = std::make_shared<Callable>();
  method->kind = Callable::Kind::kMethod;
  method->name = name;
  method->self = std::move(self);
  return Value(std::shared_ptr<const Callable>(std::move(method)));
}

Value MakeUndefined(std::string message) {
  return Value(Undefined{std::make_shared<const std::string>(std::move(message))});
}

Value FromString(std::string_view bytes, Origin origin) {
  return Value(Text(std::string(bytes), origin));
}

Value FromJson(const Json& json) {
  if (json.is_null()) return Value();
  if (json.is_bool()) return Value(json.as_bool());
  if (json.is_int()) return Value(json.as_int());
  if (json.is_double()) return Value(json.as_double());
  if (json.is_string()) return FromString(json.as_string(), Origin::kContent);
  if (json.is_array()) {
    std::vector<Value> items;
    items.reserve(json.as_array().size());
    for (const Json& item : json.as_array()) items.push_back(FromJson(item));
    return MakeList(List::Kind::kList, std::move(items));
  }
  Dict dict;
  for (const auto& [key, value] : json.members()) {
    dict.Set(FromString(key, Origin::kContent), FromJson(value));
  }
  return MakeDict(std::move(dict));
}

bool Equal(const Value& a, const Value& b, Budget& budget) {
  if (!budget.Spend(1)) return false;
  if (a.is_int() && b.is_int()) return a.as_int() == b.as_int();
  if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
  if (a.is_string() && b.is_string()) {
    if (a.text().size() == b.text().size()) budget.SpendScan(a.text().size());
    return a.text() == b.text();
  }
  if (a.is_list() && b.is_list()) {
    if (&a.list() == &b.list()) return true;
    const List::Kind kind = a.list().kind;
    if (kind != b.list().kind || kind == List::Kind::kGenerator) return false;
    return SameItems(a.list(), b.list(), budget);
  }
  if (a.is_dict() && b.is_dict()) {
    return &a.dict() == &b.dict() || SameEntries(a.dict(), b.dict(), budget);
  }
  if (a.is_none() || a.is_undefined()) {
    return a.is_none() ? b.is_none() : b.is_undefined();
  }
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  if (a.loop() != nullptr) return a.loop() == b.loop();
  return a.callable() != nullptr && a.callable() == b.callable();
}

std::optional<std::partial_ordering> Compare(const Value& a, const Value& b, Budget& budget) {
  if (!budget.Spend(1)) return std::partial_ordering::equivalent;
  if (a.is_int() && b.is_int()) return std::partial_ordering(a.as_int() <=> b.as_int());
  if (a.is_number() && b.is_number()) return a.as_double() <=> b.as_double();
  if (a.is_string() && b.is_string()) {
    budget.SpendScan(std::min(a.text().size(), b.text().size()));
    // Bytes of UTF-8 sort as their code points do.
    return std::partial_ordering(a.text().view().compare(b.text().view()) <=> 0);
  }
  if (a.is_list() && b.is_list() && a.list().kind == b.list().kind &&
      a.list().kind <= List::Kind::kTuple) {
    const auto& left = a.list().items;
    const auto& right = b.list().items;
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      if (!Equal(left[i], right[i], budget)) return Compare(left[i], right[i], budget);
    }
    return std::partial_ordering(left.size() <=> right.size());
  }
  return std::nullopt;
}

std::string ReprFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);
  const size_t e = scientific.find('e');
  const int exponent = std::atoi(scientific.c_str() + e + 1);
  // Python's rule for repr: plain notation from 1e-4 up to, and without, 1e16.
  if (exponent < -4 || exponent >= 16) return scientific;
  end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  std::string fixed(buffer, end);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

void AppendStr(const Value& value, Budget& budget, TextBuilder& out) {
  if (value.is_undefined()) return;
  if (value.is_string()) {
    out.Append(value.text());
  } else {
    AppendRepr(value, budget, out);
  }
}

void AppendRepr(const Value& value, Budget& budget, TextBuilder& out) {
  if (!budget.Spend(1)) return;
  if (value.is_none()) {
    out.Append("None", Origin::kTemplate);
  } else if (value.is_undefined()) {
    out.Append("Undefined", Origin::kTemplate);
  } else if (value.is_bool()) {
    out.Append(value.as_int() != 0 ? "True" : "False", Origin::kTemplate);
  } else if (value.is_int()) {
    out.Append(std::to_string(value.as_int()), Origin::kTemplate);
  } else if (value.is_float()) {
    out.Append(ReprFloat(value.as_double()), Origin::kTemplate);
  } else if (value.is_string()) {
    AppendReprText(value.text(), out);
  } else if (value.is_list()) {
    AppendReprList(value.list(), budget, out);
  } else if (value.is_dict()) {
    AppendReprDict(value.dict(), budget, out);
  } else if (const Namespace* names = value.name_space()) {
    AppendReprNamespace(*names, budget, out);
  } else {
    out.Append(fmt::format("<{}>", value.TypeName()), Origin::kTemplate);
  }
}

Text Str(const Value& value, Budget& budget) {
  if (value.is_string()) return value.text();
  TextBuilder out(budget);
  AppendStr(value, budget, out);
  return out.Take();
}

Text Repr(const Value& value, Budget& budget) {
  TextBuilder out(budget);
  AppendRepr(value, budget, out);
  return out.Take();
}

}  // namespace polyreme::text::jinja
