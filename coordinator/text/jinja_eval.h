// Runs a parsed template: a walk over its tree that no template and no message can make run away.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {

using Variables = std::vector<std::pair<std::string, Value>>;

// What the template prints, given the variables.
//
// Costs at most `context.budget`, nests at most kMaxTemplateNesting evaluations; beyond either, and
// for anything Jinja would raise, InvalidArgument that names the line. Keeps nothing; any thread.
absl::StatusOr<Text> Evaluate(const Body& body, const Variables& variables, const Context& context);

}  // namespace polyreme::text::jinja
