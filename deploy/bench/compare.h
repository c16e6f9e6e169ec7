// `bench compare`: two results of one kind, figure by figure, with the noise of each. Pure but for
// ReadResult.
#pragma once

#include <string>
#include <vector>

#include "deploy/bench/report.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// The result.json at `path`, or in the folder `path`. NotFound or InvalidArgument name the file.
absl::StatusOr<Json> ReadResult(const std::string& path);

// In what two results are unlike: kind, and settings under Report::kLikeness. One sentence each.
std::vector<std::string> Unlikenesses(const Json& a, const Json& b);

struct Comparison {
  std::string text;
  TextTable table;
};
// Medians over rounds, B against A in percent, the spread of each ((max - min) / median), and
// whether the difference goes beyond it: the ranges of the two do not meet. FailedPrecondition: the
// two are unlike, unless `forced`; then the text says in what. InvalidArgument: no result of a
// bench, or nothing in common.
absl::StatusOr<Comparison> Compare(const Json& a, const Json& b, bool forced);

}  // namespace polyreme::bench
