#include "coordinator/text/jinja_expression_parser.h"

#include <algorithm>

namespace polyreme::text::jinja {

using Kind = Expression::Kind;

bool ExpressionParser::Is(std::string_view punctuation) const {
  return Current().kind == Token::Kind::kPunctuation && Current().text == punctuation;
}

bool ExpressionParser::IsWord(std::string_view name) const {
  return Current().kind == Token::Kind::kName && Current().text == name;
}

bool ExpressionParser::Accept(std::string_view punctuation) {
  if (!Is(punctuation)) return false;
  Next();
  return true;
}

bool ExpressionParser::AcceptWord(std::string_view name) {
  if (!IsWord(name)) return false;
  Next();
  return true;
}

absl::Status ExpressionParser::Expect(std::string_view punctuation) {
  if (Accept(punctuation)) return absl::OkStatus();
  return Unexpected(fmt::format("'{}'", punctuation));
}

absl::StatusOr<std::string> ExpressionParser::ExpectName() {
  if (Current().kind != Token::Kind::kName) return Unexpected("a name");
  std::string name = Current().text;
  Next();
  return name;
}

absl::Status ExpressionParser::Unexpected(std::string_view expected) const {
  return InvalidArgument("line {}: expected {}, got '{:.60}'", Current().line, expected,
                         Current().text);
}

absl::Status ExpressionParser::Nested::Check() const {
  if (parser_->nesting_ <= limits::kMaxTemplateDepth) return absl::OkStatus();
  return InvalidArgument("line {}: nested more than {} deep", parser_->Current().line,
                         limits::kMaxTemplateDepth);
}

ExpressionPtr ExpressionParser::New(Kind kind) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = Current().line;
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Finish(ExpressionPtr node) const {
  const auto grow = [&node](const ExpressionPtr& child) {
    if (child != nullptr) node->depth = std::max(node->depth, child->depth + 1);
  };
  for (const ExpressionPtr& child : node->children) grow(child);
  for (const Argument& argument : node->operation.arguments) grow(argument.value);
  if (node->depth > limits::kMaxTemplateDepth) {
    return InvalidArgument("line {}: expression nested more than {} deep", node->line,
                           limits::kMaxTemplateDepth);
  }
  return node;
}

template <class... Children>
absl::StatusOr<ExpressionPtr> ExpressionParser::Build(ExpressionPtr node, Children... children) {
  (node->children.push_back(std::move(children)), ...);
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseExpression(Conditional conditional) {
  const Nested nested(this);
  RETURN_IF_ERROR(nested.Check());
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseOr());
  while (conditional == Conditional::kAllowed && IsWord("if")) {
    ExpressionPtr choice = New(Kind::kConditional);
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
    ExpressionPtr otherwise;
    if (AcceptWord("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    ASSIGN_OR_RETURN(node, Build(std::move(choice), std::move(condition), std::move(node),
                                 std::move(otherwise)));
  }
  return node;
}

bool ExpressionParser::AtTupleEnd() const {
  const Token::Kind kind = Current().kind;
  return kind == Token::Kind::kOutputEnd || kind == Token::Kind::kBlockEnd || Is(")") || Is("]");
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTuple(Conditional conditional) {
  ExpressionPtr tuple = New(Kind::kTuple);
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression(conditional));
  if (!Is(",")) return first;
  tuple->children.push_back(std::move(first));
  while (Accept(",") && !AtTupleEnd()) {
    ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression(conditional));
    tuple->children.push_back(std::move(item));
  }
  return Finish(std::move(tuple));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseAnd());
  while (IsWord("or")) {
    ExpressionPtr either = New(Kind::kOr);
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
    ASSIGN_OR_RETURN(node, Build(std::move(either), std::move(node), std::move(right)));
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseNot());
  while (IsWord("and")) {
    ExpressionPtr both = New(Kind::kAnd);
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
    ASSIGN_OR_RETURN(node, Build(std::move(both), std::move(node), std::move(right)));
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseNot() {
  if (!IsWord("not")) return ParseCompare();
  const Nested nested(this);
  RETURN_IF_ERROR(nested.Check());
  ExpressionPtr negation = New(Kind::kNot);
  Next();
  ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
  return Build(std::move(negation), std::move(operand));
}

bool ExpressionParser::AcceptComparison(Operator& op) {
  static constexpr std::pair<std::string_view, Operator> kOperators[] = {
      {"==", Operator::kEqual},     {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
      {"<=", Operator::kLessEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterEqual},
  };
  for (const auto& [text, candidate] : kOperators) {
    if (Accept(text)) {
      op = candidate;
      return true;
    }
  }
  if (AcceptWord("in")) {
    op = Operator::kIn;
    return true;
  }
  if (IsWord("not") && Peek().kind == Token::Kind::kName && Peek().text == "in") {
    Next();
    Next();
    op = Operator::kNotIn;
    return true;
  }
  return false;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseCompare() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  ExpressionPtr chain = New(Kind::kCompare);
  Operator op{};
  while (AcceptComparison(op)) {
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseSum());
    if (chain->children.empty()) chain->children.push_back(std::move(first));
    chain->children.push_back(std::move(right));
    chain->operators.push_back(op);
  }
  if (chain->children.empty()) return first;
  return Finish(std::move(chain));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSum() {
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseConcatenation());
  while (Is("+") || Is("-")) {
    ExpressionPtr sum = New(Kind::kBinary);
    sum->operators = {Is("+") ? Operator::kAdd : Operator::kSubtract};
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseConcatenation());
    ASSIGN_OR_RETURN(node, Build(std::move(sum), std::move(node), std::move(right)));
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseConcatenation() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
  if (!Is("~")) return first;
  ExpressionPtr joined = New(Kind::kConcatenate);
  joined->children.push_back(std::move(first));
  while (Accept("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr part, ParseProduct());
    joined->children.push_back(std::move(part));
  }
  return Finish(std::move(joined));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseProduct() {
  ASSIGN_OR_RETURN(ExpressionPtr node, ParsePower());
  while (Is("*") || Is("/") || Is("//") || Is("%")) {
    ExpressionPtr product = New(Kind::kBinary);
    product->operators = {Is("*")    ? Operator::kMultiply
                          : Is("/")  ? Operator::kDivide
                          : Is("//") ? Operator::kFloorDivide
                                     : Operator::kModulo};
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParsePower());
    ASSIGN_OR_RETURN(node, Build(std::move(product), std::move(node), std::move(right)));
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePower() {
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseUnary(Filters::kApply));
  while (Is("**")) {  // Jinja groups powers from the left, unlike Python
    ExpressionPtr power = New(Kind::kBinary);
    power->operators = {Operator::kPower};
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseUnary(Filters::kApply));
    ASSIGN_OR_RETURN(node, Build(std::move(power), std::move(node), std::move(right)));
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseUnary(Filters filters) {
  const Nested nested(this);
  RETURN_IF_ERROR(nested.Check());
  ExpressionPtr node;
  if (Is("-") || Is("+")) {
    ExpressionPtr sign = New(Is("-") ? Kind::kNegate : Kind::kPlus);
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(Filters::kLeave));
    ASSIGN_OR_RETURN(node, Build(std::move(sign), std::move(operand)));
  } else {
    ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  return filters == Filters::kApply ? ParseFiltersAndTests(std::move(node)) : std::move(node);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePrimary() {
  switch (Current().kind) {
    case Token::Kind::kName:
      return ParseName();
    case Token::Kind::kString:
      return ParseStrings();
    case Token::Kind::kInteger:
    case Token::Kind::kFloat: {
      ExpressionPtr number = New(Kind::kLiteral);
      number->literal = Current().kind == Token::Kind::kInteger ? Value(Current().integer)
                                                                : Value(Current().number);
      Next();
      return number;
    }
    default:
      break;
  }
  if (Is("(")) return ParseParentheses();
  if (Is("[")) return ParseListLiteral();
  if (Is("{")) return ParseDictLiteral();
  return Unexpected("an expression");
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseName() {
  ExpressionPtr node = New(Kind::kLiteral);
  const std::string name = Current().text;
  Next();
  if (name == "true" || name == "True") {
    node->literal = Value(true);
  } else if (name == "false" || name == "False") {
    node->literal = Value(false);
  } else if (name != "none" && name != "None") {
    node->kind = Kind::kName;
    node->name = name;
    if (!macros_.empty()) {
      macros_.back()->takes_varargs |= name == "varargs";
      macros_.back()->takes_kwargs |= name == "kwargs";
    }
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseStrings() {
  ExpressionPtr node = New(Kind::kLiteral);
  std::string text;
  for (; Current().kind == Token::Kind::kString; Next()) text += Current().text;
  node->literal = FromString(text, Origin::kTemplate);
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseParentheses() {
  ExpressionPtr empty = New(Kind::kTuple);
  RETURN_IF_ERROR(Expect("("));
  if (Accept(")")) return empty;
  ASSIGN_OR_RETURN(ExpressionPtr node, ParseTuple());
  RETURN_IF_ERROR(Expect(")"));
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseListLiteral() {
  ExpressionPtr list = New(Kind::kList);
  RETURN_IF_ERROR(Expect("["));
  while (!Is("]")) {
    ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    list->children.push_back(std::move(item));
    if (!Is("]")) RETURN_IF_ERROR(Expect(","));
  }
  Next();
  return Finish(std::move(list));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseDictLiteral() {
  ExpressionPtr dict = New(Kind::kDict);
  RETURN_IF_ERROR(Expect("{"));
  while (!Is("}")) {
    ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
    RETURN_IF_ERROR(Expect(":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    dict->children.push_back(std::move(key));
    dict->children.push_back(std::move(value));
    if (!Is("}")) RETURN_IF_ERROR(Expect(","));
  }
  Next();
  return Finish(std::move(dict));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePostfix(ExpressionPtr node) {
  while (true) {
    if (Is(".")) {
      ASSIGN_OR_RETURN(node, ParseDot(std::move(node)));
    } else if (Is("[")) {
      ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
    } else if (Is("(")) {
      ExpressionPtr call = New(Kind::kCall);
      ASSIGN_OR_RETURN(call->operation.arguments, ParseArguments());
      ASSIGN_OR_RETURN(node, Build(std::move(call), std::move(node)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFiltersAndTests(ExpressionPtr node) {
  while (true) {
    if (Is("|")) {
      ExpressionPtr filter = New(Kind::kFilter);
      Next();
      ASSIGN_OR_RETURN(filter->operation, ParseOperation());
      ASSIGN_OR_RETURN(node, Build(std::move(filter), std::move(node)));
    } else if (IsWord("is")) {
      ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
    } else if (Is("(")) {
      ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseDot(ExpressionPtr node) {
  ExpressionPtr access = New(Kind::kAttribute);
  RETURN_IF_ERROR(Expect("."));
  if (Current().kind == Token::Kind::kInteger) {
    access->kind = Kind::kItem;
    ASSIGN_OR_RETURN(ExpressionPtr index, ParsePrimary());
    return Build(std::move(access), std::move(node), std::move(index));
  }
  ASSIGN_OR_RETURN(access->name, ExpectName());
  return Build(std::move(access), std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSubscript(ExpressionPtr node) {
  RETURN_IF_ERROR(Expect("["));
  ASSIGN_OR_RETURN(ExpressionPtr access, ParseSubscriptItem(std::move(node)));
  RETURN_IF_ERROR(Expect("]"));
  return access;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSubscriptItem(ExpressionPtr object) {
  ExpressionPtr slice = New(Kind::kSlice);
  ExpressionPtr begin;
  if (!Is(":")) {
    ASSIGN_OR_RETURN(begin, ParseTuple());
    if (!Is(":")) {
      slice->kind = Kind::kItem;
      return Build(std::move(slice), std::move(object), std::move(begin));
    }
  }
  ExpressionPtr end;
  ExpressionPtr step;
  RETURN_IF_ERROR(Expect(":"));
  if (!Is(":") && !Is("]")) {
    ASSIGN_OR_RETURN(end, ParseExpression());
  }
  if (Accept(":") && !Is("]")) {
    ASSIGN_OR_RETURN(step, ParseExpression());
  }
  return Build(std::move(slice), std::move(object), std::move(begin), std::move(end),
               std::move(step));
}

absl::StatusOr<std::vector<Argument>> ExpressionParser::ParseArguments() {
  std::vector<Argument> arguments;
  RETURN_IF_ERROR(Expect("("));
  while (!Is(")")) {
    Argument argument;
    if (Accept("*")) {
      argument.kind = Argument::Kind::kSpreadList;
    } else if (Accept("**")) {
      argument.kind = Argument::Kind::kSpreadDict;
    } else if (Current().kind == Token::Kind::kName && Peek().kind == Token::Kind::kPunctuation &&
               Peek().text == "=") {
      argument.kind = Argument::Kind::kKeyword;
      argument.name = Current().text;
      Next();
      Next();
    }
    if (argument.kind == Argument::Kind::kPositional && !arguments.empty() &&
        arguments.back().kind != Argument::Kind::kPositional) {
      return Unexpected("no positional argument behind a keyword");
    }
    ASSIGN_OR_RETURN(argument.value, ParseExpression());
    arguments.push_back(std::move(argument));
    if (!Is(")")) RETURN_IF_ERROR(Expect(","));
  }
  Next();
  return arguments;
}

absl::StatusOr<Operation> ExpressionParser::ParseOperation() {
  Operation operation;
  operation.line = Current().line;
  ASSIGN_OR_RETURN(operation.name, ExpectName());
  while (Accept(".")) {
    ASSIGN_OR_RETURN(const std::string part, ExpectName());
    operation.name += "." + part;
  }
  if (Is("(")) {
    ASSIGN_OR_RETURN(operation.arguments, ParseArguments());
  }
  return operation;
}

// `x is [not] test`, `x is test(1)` or `x is test 1`.
absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr node) {
  ExpressionPtr test = New(Kind::kTest);
  ExpressionPtr negation = New(Kind::kNot);
  Next();
  const bool negated = AcceptWord("not");
  ASSIGN_OR_RETURN(test->operation, ParseOperation());
  const Token::Kind kind = Current().kind;
  const bool starts_argument = kind == Token::Kind::kName || kind == Token::Kind::kString ||
                               kind == Token::Kind::kInteger || kind == Token::Kind::kFloat ||
                               Is("[") || Is("{");
  if (test->operation.arguments.empty() && starts_argument && !IsWord("else") && !IsWord("or") &&
      !IsWord("and")) {
    if (IsWord("is")) return Unexpected("one test, not a chain of them");
    Argument argument;
    ASSIGN_OR_RETURN(argument.value, ParsePrimary());
    ASSIGN_OR_RETURN(argument.value, ParsePostfix(std::move(argument.value)));
    test->operation.arguments.push_back(std::move(argument));
  }
  ASSIGN_OR_RETURN(node, Build(std::move(test), std::move(node)));
  if (!negated) return node;
  return Build(std::move(negation), std::move(node));
}

}  // namespace polyreme::text::jinja
