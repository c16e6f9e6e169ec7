// Source of a template to its tree. Knows Jinja's statements and expressions; what it does not know
// it refuses by name and line.
#pragma once

#include <string_view>

#include "coordinator/text/jinja_ast.h"

namespace polyreme::text::jinja {

// Tags: if, for, set, macro, call, filter, with, break, continue, generation (its body counts as it
// stands), raw. Nesting is at most kMaxTemplateDepth. InvalidArgument with the line.
absl::StatusOr<Body> ParseTemplate(std::string_view source);

}  // namespace polyreme::text::jinja
