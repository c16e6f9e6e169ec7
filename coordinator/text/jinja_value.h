// Values of the template interpreter, with Python's meaning of truth, equality, order and printing.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/text/jinja_text.h"
#include "parallel/base/json.h"

namespace polyreme::text::jinja {

struct Callable;
struct List;
struct Loop;
struct Namespace;
class Dict;

// What a missing name or attribute gives: prints as nothing, is false, and is an error to look
// into.
struct Undefined {
  std::shared_ptr<const std::string> message;  // "'x' is undefined"; may be null
};

// Immutable but for namespaces and loops. Cheap to copy. Values nest at most kMaxTemplateDepth deep
// (the interpreter checks depth() of each result), so destroying and printing them may recurse.
class Value {
 public:
  Value() = default;  // None
  Value(Undefined value) : value_(std::move(value)) {}
  Value(bool value) : value_(value) {}
  Value(int64_t value) : value_(value) {}
  Value(double value) : value_(value) {}
  Value(Text value) : value_(std::move(value)) {}
  Value(std::shared_ptr<const List> value) : value_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : value_(std::move(value)) {}
  Value(std::shared_ptr<Namespace> value) : value_(std::move(value)) {}
  Value(std::shared_ptr<const Loop> value) : value_(std::move(value)) {}
  Value(std::shared_ptr<const Callable> value) : value_(std::move(value)) {}

  bool is_undefined() const { return std::holds_alternative<Undefined>(value_); }
  bool is_none() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_float() const { return std::holds_alternative<double>(value_); }
  // As in Python, a bool is an int.
  bool is_int() const { return is_bool() || std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || is_float(); }
  bool is_string() const { return std::holds_alternative<Text>(value_); }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(value_); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(value_); }

  // Each requires its type.
  const Undefined& undefined() const { return std::get<Undefined>(value_); }
  int64_t as_int() const { return is_bool() ? std::get<bool>(value_) : std::get<int64_t>(value_); }
  double as_double() const {
    return is_float() ? std::get<double>(value_) : static_cast<double>(as_int());
  }
  const Text& text() const { return std::get<Text>(value_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(value_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(value_); }
  // nullptr if this is something else.
  Namespace* name_space() const;
  const Loop* loop() const;
  const Callable* callable() const;

  bool Truthy() const;
  // "str", "list", "NoneType": Python's name of the type, for messages.
  std::string_view TypeName() const;
  // How deep the value nests: 0 for scalars, one more than its deepest item for containers.
  int32_t depth() const;
  // Whether a namespace or a loop can be reached from here: such a value stored in a namespace
  // could close a circle of ownership.
  bool reaches_namespace() const;

 private:
  std::variant<std::monostate, Undefined, bool, int64_t, double, Text, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Loop>,
               std::shared_ptr<const Callable>>
      value_;
};

// One class for every ordered collection of Python's that templates meet.
struct List {
  enum class Kind { kList, kTuple, kRange, kKeys, kValues, kItems, kGenerator };

  Kind kind = Kind::kList;
  std::vector<Value> items;
  int32_t depth = 1;
  bool reaches_namespace = false;
  mutable bool consumed = false;  // a generator gives its items once

  bool indexable() const { return kind <= Kind::kRange; }
};
Value MakeList(List::Kind kind, std::vector<Value> items);

// A dict: keys are strings, numbers or None, in the order they were added.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  const std::vector<Entry>& entries() const { return entries_; }
  const Value* Find(std::string_view key) const;
  const Value* Find(const Value& key) const;
  // Adds or replaces. Requires IsHashable(key).
  void Set(Value key, Value value);
  static bool IsHashable(const Value& key);

  int32_t depth() const { return depth_; }
  bool reaches_namespace() const { return reaches_namespace_; }

 private:
  // Small dicts are scanned, large ones indexed by the key's spelling.
  static constexpr size_t kIndexFrom = 12;
  static std::string Spelling(const Value& key);
  const Entry* FindSpelling(const Value& key) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
  int32_t depth_ = 1;
  bool reaches_namespace_ = false;
};
Value MakeDict(Dict dict);

// namespace(): the one thing a template can assign into.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;

  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

// The `loop` of one `for`.
struct Loop {
  std::shared_ptr<const List> items;
  mutable size_t index = 0;
};

struct Macro;  // jinja_ast.h
struct Scope;  // jinja_eval.h

struct Callable {
  enum class Kind { kFunction, kMethod, kMacro };

  Kind kind = Kind::kFunction;
  std::string name;
  Value self;  // of a method
  const Macro* macro = nullptr;
  std::weak_ptr<Scope> scope;  // where a macro was defined; its own scope may hold it, hence weak
};
Value MakeMethod(Value self, std::string_view name);

Value MakeUndefined(std::string message);
Value FromString(std::string_view bytes, Origin origin);
// Every string in it is content.
Value FromJson(const Json& json);

// Python's ==, exact between ints and floats of moderate size.
bool Equal(const Value& a, const Value& b, Budget& budget);
// Python's <, nullopt if the types have no order.
std::optional<std::partial_ordering> Compare(const Value& a, const Value& b, Budget& budget);

// Python's str() and repr().
Text Str(const Value& value, Budget& budget);
Text Repr(const Value& value, Budget& budget);
void AppendStr(const Value& value, Budget& budget, TextBuilder& out);
void AppendRepr(const Value& value, Budget& budget, TextBuilder& out);
std::string ReprFloat(double value);

}  // namespace polyreme::text::jinja
