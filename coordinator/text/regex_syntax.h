// Oniguruma's regular expressions, as tokenizer.json spells them, to PCRE2's.
//
// The two dialects agree on what the known tokenizers use but for a few escapes, which are
// rewritten (\s and \S by their members, \v, \u0041). What they read differently and nobody uses is
// refused rather than guessed: \w, \b, \h, back references, sets within sets, {n,m}+, inline
// options other than (?i).
#pragma once

#include <string>
#include <string_view>

#include "parallel/base/status.h"

namespace polyreme::text {

// A pattern for PCRE2 with the options UTF, UCP and MULTILINE (in Oniguruma ^ and $ always match at
// line ends). Errors: InvalidArgument with the construct that is not supported. Pure; any thread.
// Source: kkos/oniguruma, doc/RE (syntax ONIG_SYNTAX_ONIGURUMA).
absl::StatusOr<std::string> TranslateRegex(std::string_view pattern);

}  // namespace polyreme::text
