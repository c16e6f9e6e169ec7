// The expression half of the parser: one method per level of precedence, loosest first.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_lexer.h"

namespace polyreme::text::jinja {

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  enum class Conditional { kAllowed, kNone };  // whether `a if b else c` may stand here

  absl::StatusOr<ExpressionPtr> ParseExpression(Conditional conditional = Conditional::kAllowed);
  // One expression, or a tuple if commas follow.
  absl::StatusOr<ExpressionPtr> ParseTuple(Conditional conditional = Conditional::kAllowed);
  absl::StatusOr<std::vector<Argument>> ParseArguments();  // at "("
  // `name.name(arguments)` behind a pipe.
  absl::StatusOr<Operation> ParseOperation();

  const Token& Current() const { return tokens_[at_]; }
  const Token& Peek() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void Next() { at_ += at_ + 1 < tokens_.size(); }
  bool Is(std::string_view punctuation) const;
  bool IsWord(std::string_view name) const;
  bool Accept(std::string_view punctuation);
  bool AcceptWord(std::string_view name);
  absl::Status Expect(std::string_view punctuation);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Unexpected(std::string_view expected) const;

  // Counts nesting while it lives.
  class Nested {
   public:
    explicit Nested(ExpressionParser* parser) : parser_(parser) { ++parser_->nesting_; }
    ~Nested() { --parser_->nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    absl::Status Check() const;

   private:
    ExpressionParser* parser_;
  };

  std::vector<Macro*> macros_;  // being parsed, innermost last

 private:
  absl::StatusOr<ExpressionPtr> ParseOr();
  absl::StatusOr<ExpressionPtr> ParseAnd();
  absl::StatusOr<ExpressionPtr> ParseNot();
  absl::StatusOr<ExpressionPtr> ParseCompare();
  absl::StatusOr<ExpressionPtr> ParseSum();
  absl::StatusOr<ExpressionPtr> ParseConcatenation();
  absl::StatusOr<ExpressionPtr> ParseProduct();
  absl::StatusOr<ExpressionPtr> ParsePower();
  enum class Filters { kApply, kLeave };
  absl::StatusOr<ExpressionPtr> ParseUnary(Filters filters);
  absl::StatusOr<ExpressionPtr> ParsePrimary();
  absl::StatusOr<ExpressionPtr> ParseName();
  absl::StatusOr<ExpressionPtr> ParseStrings();
  absl::StatusOr<ExpressionPtr> ParseParentheses();
  absl::StatusOr<ExpressionPtr> ParseListLiteral();
  absl::StatusOr<ExpressionPtr> ParseDictLiteral();
  absl::StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseFiltersAndTests(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseDot(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseSubscriptItem(ExpressionPtr object);
  absl::StatusOr<ExpressionPtr> ParseTest(ExpressionPtr node);
  // Takes the comparison operator that stands here, if one does.
  bool AcceptComparison(Operator& op);
  // Whether a tuple cannot go on here.
  bool AtTupleEnd() const;

  ExpressionPtr New(Expression::Kind kind) const;
  // Adds children to a node and checks how deep the tree has become.
  template <class... Children>
  absl::StatusOr<ExpressionPtr> Build(ExpressionPtr node, Children... children);
  absl::StatusOr<ExpressionPtr> Finish(ExpressionPtr node) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int32_t nesting_ = 0;
};

}  // namespace polyreme::text::jinja
