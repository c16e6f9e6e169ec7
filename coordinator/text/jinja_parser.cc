#include "coordinator/text/jinja_parser.h"

#include <initializer_list>

#include "coordinator/text/jinja_expression_parser.h"

namespace polyreme::text::jinja {
namespace {

class StatementParser : private ExpressionParser {
 public:
  explicit StatementParser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    ASSIGN_OR_RETURN(Body body, ParseBody({}));
    if (Current().kind != Token::Kind::kEnd) return Unexpected("the end of the template");
    return body;
  }

 private:
  // Statements up to one of the tags in `ends`, whose name is then current; all of them if `ends`
  // is empty.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    const Nested nested(this);
    RETURN_IF_ERROR(nested.Check());
    Body body;
    while (Current().kind != Token::Kind::kEnd) {
      Statement statement;
      statement.line = Current().line;
      if (Current().kind == Token::Kind::kData) {
        statement.node = OutputData{Text(Current().text, Origin::kTemplate)};
        Next();
      } else if (Current().kind == Token::Kind::kOutputBegin) {
        Next();
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseTuple());
        RETURN_IF_ERROR(ExpectEnd(Token::Kind::kOutputEnd, "}}"));
        statement.node = OutputExpression{std::move(value)};
      } else {
        Next();  // {%
        for (const std::string_view end : ends) {
          if (IsWord(end)) return body;
        }
        RETURN_IF_ERROR(ParseTag(statement));
      }
      body.push_back(std::move(statement));
    }
    if (ends.size() > 0) return Unexpected(fmt::format("'{{% {} %}}'", *(ends.end() - 1)));
    return body;
  }

  absl::Status ExpectEnd(Token::Kind kind, std::string_view spelling) {
    if (Current().kind != kind) return Unexpected(fmt::format("'{}'", spelling));
    Next();
    return absl::OkStatus();
  }
  absl::Status ExpectBlockEnd() { return ExpectEnd(Token::Kind::kBlockEnd, "%}"); }

  // `%}` body `{% end %}`.
  absl::StatusOr<Body> ParseBlock(std::string_view end) {
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    Next();
    RETURN_IF_ERROR(ExpectBlockEnd());
    return body;
  }

  absl::Status ParseTag(Statement& statement) {
    const std::string tag = Current().text;
    if (Current().kind != Token::Kind::kName) return Unexpected("the name of a tag");
    Next();
    if (tag == "if") return ParseIf(statement);
    if (tag == "for") return ParseFor(statement);
    if (tag == "set") return ParseSet(statement);
    if (tag == "macro") return ParseMacro(statement);
    if (tag == "call") return ParseCall(statement);
    if (tag == "filter") return ParseFilterBlock(statement);
    if (tag == "with") return ParseWith(statement);
    if (tag == "generation") {
      ASSIGN_OR_RETURN(Body body, ParseBlock("endgeneration"));
      statement.node = With{{}, std::move(body)};
      return absl::OkStatus();
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) return InvalidArgument("line {}: '{}' outside a loop", statement.line, tag);
      if (tag == "break") {
        statement.node = Break{};
      } else {
        statement.node = Continue{};
      }
      return ExpectBlockEnd();
    }
    return InvalidArgument("line {}: the tag '{}' is unknown or not supported", statement.line,
                           tag);
  }

  absl::Status ParseIf(Statement& statement) {
    If node;
    while (true) {
      If::Branch branch;
      ASSIGN_OR_RETURN(branch.condition, ParseTuple(Conditional::kNone));
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
      node.branches.push_back(std::move(branch));
      if (AcceptWord("elif")) continue;
      if (AcceptWord("else")) {
        ASSIGN_OR_RETURN(node.otherwise, ParseBlock("endif"));
      } else {
        Next();
        RETURN_IF_ERROR(ExpectBlockEnd());
      }
      statement.node = std::move(node);
      return absl::OkStatus();
    }
  }

  absl::Status ParseFor(Statement& statement) {
    For node;
    ASSIGN_OR_RETURN(node.target, ParseTarget());
    if (!AcceptWord("in")) return Unexpected("'in'");
    ASSIGN_OR_RETURN(node.iterable, ParseTuple(Conditional::kNone));
    if (AcceptWord("if")) {
      ASSIGN_OR_RETURN(node.condition, ParseExpression());
    }
    if (IsWord("recursive")) {
      return InvalidArgument("line {}: recursive loops are not supported", statement.line);
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    ASSIGN_OR_RETURN(node.body, ParseBody({"else", "endfor"}));
    --loops_;
    if (AcceptWord("else")) {
      ASSIGN_OR_RETURN(node.otherwise, ParseBlock("endfor"));
    } else {
      Next();
      RETURN_IF_ERROR(ExpectBlockEnd());
    }
    statement.node = std::move(node);
    return absl::OkStatus();
  }

  absl::Status ParseSet(Statement& statement) {
    ASSIGN_OR_RETURN(Target target, ParseTarget());
    if (Accept("=")) {
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseTuple());
      statement.node = Set{std::move(target), std::move(value)};
      return ExpectBlockEnd();
    }
    SetBlock node{std::move(target), {}, {}};
    while (Accept("|")) {
      ASSIGN_OR_RETURN(Operation filter, ParseOperation());
      node.filters.push_back(std::move(filter));
    }
    ASSIGN_OR_RETURN(node.body, ParseBlock("endset"));
    statement.node = std::move(node);
    return absl::OkStatus();
  }

  // A name, `namespace.attribute`, or several of them with commas, in parentheses or not.
  absl::StatusOr<Target> ParseTarget() {
    ASSIGN_OR_RETURN(Target first, ParseOneTarget());
    if (!Is(",")) return first;
    Target tuple;
    tuple.parts.push_back(std::move(first));
    while (Accept(",") && (Current().kind == Token::Kind::kName || Is("(")) && !IsWord("in")) {
      ASSIGN_OR_RETURN(Target part, ParseOneTarget());
      tuple.parts.push_back(std::move(part));
    }
    return tuple;
  }

  absl::StatusOr<Target> ParseOneTarget() {
    const Nested nested(this);
    RETURN_IF_ERROR(nested.Check());
    Target target;
    if (Accept("(")) {
      ASSIGN_OR_RETURN(target, ParseTarget());
      RETURN_IF_ERROR(Expect(")"));
      return target;
    }
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (IsWord(constant)) return Unexpected("a name to assign to");
    }
    ASSIGN_OR_RETURN(target.name, ExpectName());
    if (Accept(".")) {
      ASSIGN_OR_RETURN(target.attribute, ExpectName());
    }
    return target;
  }

  absl::Status ParseMacro(Statement& statement) {
    auto macro = std::make_unique<Macro>();
    ASSIGN_OR_RETURN(macro->name, ExpectName());
    if (!Is("(")) return Unexpected("'('");
    RETURN_IF_ERROR(ParseMacroRest(*macro, "endmacro"));
    statement.node = DefineMacro{std::move(macro)};
    return absl::OkStatus();
  }

  absl::Status ParseParameters(Macro& macro) {
    RETURN_IF_ERROR(Expect("("));
    while (!Is(")")) {
      Macro::Parameter parameter;
      ASSIGN_OR_RETURN(parameter.name, ExpectName());
      if (Accept("=")) {
        ASSIGN_OR_RETURN(parameter.default_value, ParseExpression());
      } else if (!macro.parameters.empty() && macro.parameters.back().default_value != nullptr) {
        return Unexpected("a default, as the parameter before has one");
      }
      macro.parameters.push_back(std::move(parameter));
      if (!Is(")")) RETURN_IF_ERROR(Expect(","));
    }
    Next();
    return absl::OkStatus();
  }

  // Parameters, body and end of a macro or call block. A loop around it is not around its body.
  absl::Status ParseMacroRest(Macro& macro, std::string_view end) {
    RETURN_IF_ERROR(ParseParameters(macro));
    return ParseMacroBody(macro, end);
  }

  absl::Status ParseMacroBody(Macro& macro, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    macros_.push_back(&macro);
    ASSIGN_OR_RETURN(macro.body, ParseBlock(end));
    macros_.pop_back();
    loops_ = loops;
    return absl::OkStatus();
  }

  absl::Status ParseCall(Statement& statement) {
    CallBlock node;
    node.caller = std::make_unique<Macro>();
    node.caller->name = "caller";
    if (Is("(")) RETURN_IF_ERROR(ParseParameters(*node.caller));
    ASSIGN_OR_RETURN(node.call, ParseExpression());
    if (node.call->kind != Expression::Kind::kCall) return Unexpected("a call of a macro");
    RETURN_IF_ERROR(ParseMacroBody(*node.caller, "endcall"));
    statement.node = std::move(node);
    return absl::OkStatus();
  }

  absl::Status ParseFilterBlock(Statement& statement) {
    FilterBlock node;
    do {
      ASSIGN_OR_RETURN(Operation filter, ParseOperation());
      node.filters.push_back(std::move(filter));
    } while (Accept("|"));
    ASSIGN_OR_RETURN(node.body, ParseBlock("endfilter"));
    statement.node = std::move(node);
    return absl::OkStatus();
  }

  absl::Status ParseWith(Statement& statement) {
    With node;
    while (Current().kind == Token::Kind::kName) {
      ASSIGN_OR_RETURN(Target target, ParseOneTarget());
      RETURN_IF_ERROR(Expect("="));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      node.assignments.emplace_back(std::move(target), std::move(value));
      if (!Accept(",")) break;
    }
    ASSIGN_OR_RETURN(node.body, ParseBlock("endwith"));
    statement.node = std::move(node);
    return absl::OkStatus();
  }

  int loops_ = 0;  // around the current statement, inside the current macro
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return StatementParser(std::move(tokens)).Run();
}

}  // namespace polyreme::text::jinja
