#include "coordinator/text/jinja_eval.h"

#include <algorithm>

namespace polyreme::text::jinja {

// Names of one block; what is not here is looked for outside. `if` opens none, all other blocks do.
struct Scope {
  std::shared_ptr<Scope> outer;
  Variables variables;

  const Value* Find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer.get()) {
      for (const auto& [key, value] : scope->variables) {
        if (key == name) return &value;
      }
    }
    return nullptr;
  }

  void Set(std::string_view name, Value value) {
    for (auto& [key, old] : variables) {
      if (key == name) {
        old = std::move(value);
        return;
      }
    }
    variables.emplace_back(name, std::move(value));
  }
};

namespace {

using ScopePtr = std::shared_ptr<Scope>;
enum class Flow { kNext, kBreak, kContinue };

ScopePtr Inside(const ScopePtr& outer) {
  auto scope = std::make_shared<Scope>();
  scope->outer = outer;
  return scope;
}

class Interpreter {
 public:
  explicit Interpreter(const Context& context) : context_(context), budget_(context.budget) {}

  absl::StatusOr<Flow> Run(const Body& body, const ScopePtr& scope, TextBuilder& out) {
    for (const Statement& statement : body) {
      absl::StatusOr<Flow> flow = Execute(statement, scope, out);
      if (!flow.ok()) return AtLine(flow.status(), statement.line);
      if (*flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

 private:
  // Counts how deep evaluation nests while it lives.
  class Nested {
   public:
    explicit Nested(Interpreter* interpreter) : interpreter_(interpreter) {
      ++interpreter_->nesting_;
    }
    ~Nested() { --interpreter_->nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Interpreter* interpreter_;
  };

  absl::Status Step() {
    budget_.Spend(1);
    RETURN_IF_ERROR(budget_.status());
    if (nesting_ <= limits::kMaxTemplateNesting) return absl::OkStatus();
    return InvalidArgument("evaluation nested more than {} deep", limits::kMaxTemplateNesting);
  }

  // The first line an error meets is the innermost one.
  absl::Status AtLine(const absl::Status& status, int line) {
    if (std::exchange(located_, true)) return status;
    return Annotate(status, fmt::format("line {}", line));
  }

  absl::StatusOr<Flow> Execute(const Statement& statement, const ScopePtr& scope,
                               TextBuilder& out) {
    const Nested nested(this);
    RETURN_IF_ERROR(Step());
    return std::visit([&](const auto& node) { return Do(node, scope, out); }, statement.node);
  }

  using FlowOr = absl::StatusOr<Flow>;

  FlowOr Do(const OutputData& node, const ScopePtr&, TextBuilder& out) {
    out.Append(node.text);
    return Flow::kNext;
  }

  FlowOr Do(const OutputExpression& node, const ScopePtr& scope, TextBuilder& out) {
    ASSIGN_OR_RETURN(const Value value, Eval(*node.value, scope));
    AppendStr(value, budget_, out);
    return Flow::kNext;
  }

  FlowOr Do(const If& node, const ScopePtr& scope, TextBuilder& out) {
    for (const If::Branch& branch : node.branches) {
      ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition, scope));
      if (condition.Truthy()) return Run(branch.body, scope, out);
    }
    return Run(node.otherwise, scope, out);
  }

  // The items a loop will walk: those that meet its condition.
  absl::StatusOr<std::vector<Value>> ItemsOf(const For& node, const ScopePtr& scope) {
    ASSIGN_OR_RETURN(const Value iterable, Eval(*node.iterable, scope));
    ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(context_, iterable));
    if (node.condition == nullptr) return items;
    std::vector<Value> kept;
    for (Value& item : items) {
      const ScopePtr inner = Inside(scope);
      RETURN_IF_ERROR(Assign(node.target, item, inner));
      ASSIGN_OR_RETURN(const Value condition, Eval(*node.condition, inner));
      if (condition.Truthy()) kept.push_back(std::move(item));
    }
    return kept;
  }

  FlowOr Do(const For& node, const ScopePtr& scope, TextBuilder& out) {
    ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(node, scope));
    RETURN_IF_ERROR(budget_.status());
    if (items.empty()) return Run(node.otherwise, Inside(scope), out);
    const size_t count = items.size();
    auto loop = std::make_shared<Loop>();
    auto list = std::make_shared<List>();
    list->items = std::move(items);
    loop->items = std::move(list);
    Flow flow = Flow::kNext;
    for (size_t i = 0; i < count && flow != Flow::kBreak; ++i) {
      loop->index = i;
      const ScopePtr inner = Inside(scope);
      inner->Set("loop", Value(std::shared_ptr<const Loop>(loop)));
      RETURN_IF_ERROR(Assign(node.target, loop->items->items[i], inner));
      ASSIGN_OR_RETURN(flow, Run(node.body, inner, out));
    }
    return Flow::kNext;
  }

  FlowOr Do(const Set& node, const ScopePtr& scope, TextBuilder&) {
    ASSIGN_OR_RETURN(const Value value, Eval(*node.value, scope));
    RETURN_IF_ERROR(Assign(node.target, value, scope));
    return Flow::kNext;
  }

  // What a body prints, passed through filters.
  absl::StatusOr<Value> Capture(const Body& body, const std::vector<Operation>& filters,
                                const ScopePtr& scope) {
    TextBuilder captured(budget_);
    const ScopePtr inner = Inside(scope);
    RETURN_IF_ERROR(Run(body, inner, captured).status());
    Value value(captured.Take());
    for (const Operation& filter : filters) {
      ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(filter.arguments, scope));
      ASSIGN_OR_RETURN(value, ApplyFilter(context_, filter.name, value, arguments));
    }
    return value;
  }

  FlowOr Do(const SetBlock& node, const ScopePtr& scope, TextBuilder&) {
    ASSIGN_OR_RETURN(const Value value, Capture(node.body, node.filters, scope));
    RETURN_IF_ERROR(Assign(node.target, value, scope));
    return Flow::kNext;
  }

  FlowOr Do(const FilterBlock& node, const ScopePtr& scope, TextBuilder& out) {
    ASSIGN_OR_RETURN(const Value value, Capture(node.body, node.filters, scope));
    AppendStr(value, budget_, out);
    return Flow::kNext;
  }

  FlowOr Do(const With& node, const ScopePtr& scope, TextBuilder& out) {
    const ScopePtr inner = Inside(scope);
    for (const auto& [target, expression] : node.assignments) {
      ASSIGN_OR_RETURN(const Value value, Eval(*expression, scope));
      RETURN_IF_ERROR(Assign(target, value, inner));
    }
    return Run(node.body, inner, out);
  }

  static Value MacroValue(const Macro& macro, const ScopePtr& scope) {
    auto callable = std::make_shared<Callable>();
    callable->kind = Callable::Kind::kMacro;
    callable->name = macro.name;
    callable->macro = &macro;
    callable->scope = scope;
    return Value(std::shared_ptr<const Callable>(std::move(callable)));
  }

  FlowOr Do(const DefineMacro& node, const ScopePtr& scope, TextBuilder&) {
    scope->Set(node.macro->name, MacroValue(*node.macro, scope));
    return Flow::kNext;
  }

  FlowOr Do(const CallBlock& node, const ScopePtr& scope, TextBuilder& out) {
    ASSIGN_OR_RETURN(const Value callee, Eval(*node.call->children[0], scope));
    ASSIGN_OR_RETURN(Arguments arguments, EvalArguments(node.call->operation.arguments, scope));
    arguments.keywords.emplace_back("caller", MacroValue(*node.caller, scope));
    ASSIGN_OR_RETURN(const Value value, Call(callee, arguments));
    AppendStr(value, budget_, out);
    return Flow::kNext;
  }

  FlowOr Do(const Break&, const ScopePtr&, TextBuilder&) { return Flow::kBreak; }
  FlowOr Do(const Continue&, const ScopePtr&, TextBuilder&) { return Flow::kContinue; }

  absl::Status Assign(const Target& target, const Value& value, const ScopePtr& scope) {
    if (!target.parts.empty()) {
      ASSIGN_OR_RETURN(const auto items, Iterate(context_, value));
      if (items.size() != target.parts.size()) {
        return InvalidArgument("expected {} values to unpack, got {}", target.parts.size(),
                               items.size());
      }
      for (size_t i = 0; i < items.size(); ++i) {
        RETURN_IF_ERROR(Assign(target.parts[i], items[i], scope));
      }
      return absl::OkStatus();
    }
    if (target.attribute.empty()) {
      scope->Set(target.name, value);
      return absl::OkStatus();
    }
    const Value* holder = scope->Find(target.name);
    if (holder == nullptr || holder->name_space() == nullptr) {
      return InvalidArgument("cannot assign attribute '{}' on non-namespace object '{}'",
                             target.attribute, target.name);
    }
    if (value.reaches_namespace()) {
      return InvalidArgument("a namespace inside a namespace is not supported");
    }
    holder->name_space()->Set(target.attribute, value);
    return absl::OkStatus();
  }

  // Evaluates, then checks what holds of every value: the budget lasts and nothing nests too deep.
  absl::StatusOr<Value> Eval(const Expression& node, const ScopePtr& scope) {
    const Nested nested(this);
    RETURN_IF_ERROR(Step());
    absl::StatusOr<Value> value = EvalNode(node, scope);
    if (!value.ok()) return AtLine(value.status(), node.line);
    RETURN_IF_ERROR(budget_.status());
    if (value->depth() > limits::kMaxTemplateDepth) {
      return InvalidArgument("value nested more than {} deep", limits::kMaxTemplateDepth);
    }
    return value;
  }

  absl::StatusOr<Value> EvalNode(const Expression& node, const ScopePtr& scope) {
    using Kind = Expression::Kind;
    switch (node.kind) {
      case Kind::kLiteral:
        return node.literal;
      case Kind::kName:
        return Lookup(node.name, scope);
      case Kind::kList:
      case Kind::kTuple: {
        ASSIGN_OR_RETURN(auto items, EvalAll(node, scope));
        return MakeList(node.kind == Kind::kList ? List::Kind::kList : List::Kind::kTuple,
                        std::move(items));
      }
      case Kind::kDict:
        return EvalDict(node, scope);
      case Kind::kAnd:
      case Kind::kOr: {
        ASSIGN_OR_RETURN(Value left, Eval(*node.children[0], scope));
        if (left.Truthy() == (node.kind == Kind::kOr)) return left;
        return Eval(*node.children[1], scope);
      }
      case Kind::kNot:
      case Kind::kNegate:
      case Kind::kPlus:
        return EvalUnary(node, scope);
      case Kind::kBinary: {
        ASSIGN_OR_RETURN(const Value left, Eval(*node.children[0], scope));
        ASSIGN_OR_RETURN(const Value right, Eval(*node.children[1], scope));
        return ApplyBinary(context_, node.operators[0], left, right);
      }
      case Kind::kCompare:
        return EvalComparison(node, scope);
      case Kind::kConcatenate: {
        ASSIGN_OR_RETURN(const auto parts, EvalAll(node, scope));
        TextBuilder joined(budget_);
        for (const Value& part : parts) AppendStr(part, budget_, joined);
        return Value(joined.Take());
      }
      case Kind::kConditional: {
        ASSIGN_OR_RETURN(const Value condition, Eval(*node.children[0], scope));
        if (condition.Truthy()) return Eval(*node.children[1], scope);
        if (node.children[2] != nullptr) return Eval(*node.children[2], scope);
        return MakeUndefined("the inline if-expression evaluated to false and no else was given");
      }
      default:
        return EvalPostfix(node, scope);
    }
  }

  absl::StatusOr<Value> EvalPostfix(const Expression& node, const ScopePtr& scope) {
    using Kind = Expression::Kind;
    ASSIGN_OR_RETURN(const Value object, Eval(*node.children[0], scope));
    switch (node.kind) {
      case Kind::kAttribute:
        return GetAttribute(context_, object, node.name);
      case Kind::kItem: {
        ASSIGN_OR_RETURN(const Value key, Eval(*node.children[1], scope));
        return GetItem(context_, object, key);
      }
      case Kind::kSlice: {
        Value bounds[3];
        for (size_t i = 0; i < 3; ++i) {
          if (node.children[i + 1] == nullptr) continue;
          ASSIGN_OR_RETURN(bounds[i], Eval(*node.children[i + 1], scope));
        }
        return GetSlice(context_, object, {bounds[0], bounds[1], bounds[2]});
      }
      default:
        break;
    }
    ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(node.operation.arguments, scope));
    if (node.kind == Kind::kCall) return Call(object, arguments);
    if (node.kind == Kind::kFilter) {
      return ApplyFilter(context_, node.operation.name, object, arguments);
    }
    ASSIGN_OR_RETURN(const bool holds, ApplyTest(context_, node.operation.name, object, arguments));
    return Value(holds);
  }

  static Value Lookup(const std::string& name, const ScopePtr& scope) {
    if (const Value* found = scope->Find(name)) return *found;
    if (!IsFunction(name)) return MakeUndefined(fmt::format("'{}' is undefined", name));
    auto function = std::make_shared<Callable>();
    function->name = name;
    return Value(std::shared_ptr<const Callable>(std::move(function)));
  }

  absl::StatusOr<std::vector<Value>> EvalAll(const Expression& node, const ScopePtr& scope) {
    std::vector<Value> values;
    for (const ExpressionPtr& child : node.children) {
      ASSIGN_OR_RETURN(Value value, Eval(*child, scope));
      values.push_back(std::move(value));
    }
    return values;
  }

  absl::StatusOr<Value> EvalDict(const Expression& node, const ScopePtr& scope) {
    ASSIGN_OR_RETURN(auto values, EvalAll(node, scope));
    Dict dict;
    for (size_t i = 0; i < values.size(); i += 2) {
      if (!Dict::IsHashable(values[i])) {
        return InvalidArgument("unhashable type: '{}'", values[i].TypeName());
      }
      dict.Set(std::move(values[i]), std::move(values[i + 1]));
    }
    return MakeDict(std::move(dict));
  }

  absl::StatusOr<Value> EvalUnary(const Expression& node, const ScopePtr& scope) {
    ASSIGN_OR_RETURN(const Value value, Eval(*node.children[0], scope));
    if (node.kind == Expression::Kind::kNot) return Value(!value.Truthy());
    if (node.kind == Expression::Kind::kNegate) return Negate(value);
    if (value.is_float()) return value;
    if (value.is_int()) return Value(value.as_int());
    return InvalidArgument("bad operand type for unary +: '{}'", value.TypeName());
  }

  absl::StatusOr<Value> EvalComparison(const Expression& node, const ScopePtr& scope) {
    ASSIGN_OR_RETURN(Value left, Eval(*node.children[0], scope));
    for (size_t i = 0; i < node.operators.size(); ++i) {
      ASSIGN_OR_RETURN(Value right, Eval(*node.children[i + 1], scope));
      ASSIGN_OR_RETURN(const bool holds, ApplyComparison(context_, node.operators[i], left, right));
      if (!holds) return Value(false);
      left = std::move(right);
    }
    return Value(true);
  }

  absl::StatusOr<Arguments> EvalArguments(const std::vector<Argument>& nodes,
                                          const ScopePtr& scope) {
    Arguments arguments;
    for (const Argument& node : nodes) {
      ASSIGN_OR_RETURN(Value value, Eval(*node.value, scope));
      if (node.kind == Argument::Kind::kPositional) {
        arguments.positional.push_back(std::move(value));
      } else if (node.kind == Argument::Kind::kKeyword) {
        arguments.keywords.emplace_back(node.name, std::move(value));
      } else if (node.kind == Argument::Kind::kSpreadList) {
        ASSIGN_OR_RETURN(const auto items, Iterate(context_, value));
        arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
      } else if (!value.is_dict()) {
        return InvalidArgument("argument after ** must be a mapping, not {}", value.TypeName());
      } else {
        for (const auto& [key, item] : value.dict().entries()) {
          if (!key.is_string()) return InvalidArgument("keywords must be strings");
          arguments.keywords.emplace_back(key.text().str(), item);
        }
      }
    }
    return arguments;
  }

  absl::StatusOr<Value> Call(const Value& callee, const Arguments& arguments) {
    const Callable* callable = callee.callable();
    if (callable == nullptr) {
      if (callee.is_undefined()) {
        const auto& message = callee.undefined().message;
        return InvalidArgument("{}", message != nullptr ? *message : "value is undefined");
      }
      if (callee.loop() != nullptr) return InvalidArgument("recursive loops are not supported");
      return InvalidArgument("'{}' object is not callable", callee.TypeName());
    }
    if (callable->self.is_string()) budget_.SpendScan(callable->self.text().size());
    if (callable->kind == Callable::Kind::kMethod) {
      return CallMethod(context_, *callable, arguments);
    }
    if (callable->kind == Callable::Kind::kFunction) {
      return CallFunction(context_, callable->name, arguments);
    }
    return CallMacro(*callable, arguments);
  }

  absl::StatusOr<Value> CallMacro(const Callable& callable, const Arguments& arguments) {
    const ScopePtr defined_in = callable.scope.lock();
    if (defined_in == nullptr) {
      return InvalidArgument("the macro '{}' is called outside the block that defines it",
                             callable.name);
    }
    const ScopePtr scope = Inside(defined_in);
    RETURN_IF_ERROR(BindMacro(*callable.macro, arguments, scope));
    TextBuilder out(budget_);
    RETURN_IF_ERROR(Run(callable.macro->body, scope, out).status());
    return Value(out.Take());
  }

  absl::Status BindMacro(const Macro& macro, const Arguments& arguments, const ScopePtr& scope) {
    const size_t count = macro.parameters.size();
    std::vector<Value> rest;
    Dict other;
    for (size_t i = 0; i < arguments.positional.size(); ++i) {
      if (i < count) {
        scope->Set(macro.parameters[i].name, arguments.positional[i]);
      } else if (macro.takes_varargs) {
        rest.push_back(arguments.positional[i]);
      } else {
        return InvalidArgument("macro '{}' takes not more than {} argument(s)", macro.name, count);
      }
    }
    for (const auto& [name, value] : arguments.keywords) {
      const auto is_named = [&name = name](const Macro::Parameter& p) { return p.name == name; };
      const auto found = std::find_if(macro.parameters.begin(), macro.parameters.end(), is_named);
      const auto index = static_cast<size_t>(found - macro.parameters.begin());
      if (found != macro.parameters.end() && index >= arguments.positional.size()) {
        scope->Set(name, value);
      } else if (name == "caller") {
        scope->Set(name, value);
      } else if (macro.takes_kwargs) {
        other.Set(FromString(name, Origin::kTemplate), value);
      } else {
        return InvalidArgument("macro '{}' takes no keyword argument '{}'", macro.name, name);
      }
    }
    if (macro.takes_varargs) {
      scope->Set("varargs", MakeList(List::Kind::kTuple, std::move(rest)));
    }
    if (macro.takes_kwargs) scope->Set("kwargs", MakeDict(std::move(other)));
    return FillDefaults(macro, scope);
  }

  // Parameters without an argument, in order, so that a default may name an earlier parameter.
  absl::Status FillDefaults(const Macro& macro, const ScopePtr& scope) {
    for (const Macro::Parameter& parameter : macro.parameters) {
      const auto is_set = [&](const auto& variable) { return variable.first == parameter.name; };
      if (std::any_of(scope->variables.begin(), scope->variables.end(), is_set)) continue;
      Value value = MakeUndefined(fmt::format("parameter '{}' was not provided", parameter.name));
      if (parameter.default_value != nullptr) {
        ASSIGN_OR_RETURN(value, Eval(*parameter.default_value, scope));
      }
      scope->Set(parameter.name, std::move(value));
    }
    return absl::OkStatus();
  }

  const Context& context_;
  Budget& budget_;
  int32_t nesting_ = 0;
  bool located_ = false;  // an error has its line
};

}  // namespace

absl::StatusOr<Text> Evaluate(const Body& body, const Variables& variables,
                              const Context& context) {
  const auto scope = std::make_shared<Scope>();
  scope->variables = variables;
  TextBuilder out(context.budget);
  RETURN_IF_ERROR(Interpreter(context).Run(body, scope, out).status());
  RETURN_IF_ERROR(context.budget.status());
  return out.Take();
}

}  // namespace polyreme::text::jinja
