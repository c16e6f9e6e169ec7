// The tree of a parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/text/jinja_value.h"

namespace polyreme::text::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<Statement>;

// One argument of a call. `name` is set for keywords only.
struct Argument {
  enum class Kind { kPositional, kKeyword, kSpreadList, kSpreadDict };
  Kind kind = Kind::kPositional;
  std::string name;
  ExpressionPtr value;
};

// `name(arguments)` after a pipe or after `is`.
struct Operation {
  int line = 0;
  std::string name;
  std::vector<Argument> arguments;
};

enum class Operator {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expression {
  enum class Kind {
    kLiteral,      // literal
    kName,         // name
    kList,         // children
    kTuple,        // children
    kDict,         // children: key, value, key, value, ...
    kNot,          // children[0]
    kNegate,       // children[0]
    kPlus,         // children[0]
    kBinary,       // children[0] operators[0] children[1]
    kCompare,      // children[0] operators[0] children[1] operators[1] children[2] ...
    kAnd,          // children[0], children[1]
    kOr,           // children[0], children[1]
    kConcatenate,  // children joined as text (~)
    kConditional,  // children: condition, then, otherwise (may be null: undefined)
    kAttribute,    // children[0] . name
    kItem,         // children[0] [ children[1] ]
    kSlice,        // children[0] [ children[1] : children[2] : children[3] ], each may be null
    kCall,         // children[0] ( operation.arguments )
    kFilter,       // children[0] | operation
    kTest,         // children[0] is operation
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int32_t depth = 1;  // of the tree below
  Value literal;
  std::string name;
  std::vector<Operator> operators;
  std::vector<ExpressionPtr> children;
  Operation operation;
};

// What `set`, `for` and `with` assign to: a name, an attribute of a namespace, or a tuple of
// targets.
struct Target {
  std::string name;
  std::string attribute;  // empty unless `name.attribute`
  std::vector<Target> parts;
};

struct OutputData {
  Text text;
};
struct OutputExpression {
  ExpressionPtr value;
};
struct If {
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  std::vector<Branch> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr condition;  // may be null
  Body body;
  Body otherwise;
};
struct Set {
  Target target;
  ExpressionPtr value;
};
struct SetBlock {
  Target target;
  std::vector<Operation> filters;
  Body body;
};
struct Macro {
  struct Parameter {
    std::string name;
    ExpressionPtr default_value;
  };  // default may be null
  std::string name;
  std::vector<Parameter> parameters;
  bool takes_varargs = false;  // the body names `varargs`
  bool takes_kwargs = false;   // the body names `kwargs`
  Body body;
};
struct DefineMacro {
  std::unique_ptr<Macro> macro;
};
struct CallBlock {
  ExpressionPtr call;
  std::unique_ptr<Macro> caller;
};
struct FilterBlock {
  std::vector<Operation> filters;
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  int line = 0;
  std::variant<OutputData, OutputExpression, If, For, Set, SetBlock, DefineMacro, CallBlock,
               FilterBlock, With, Break, Continue>
      node;
};

}  // namespace polyreme::text::jinja
