// Slurm's shorthand for lists: of node names and of tasks per node.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::launch {

// "n[01-04,7],x" -> n01 n02 n03 n04 n7 x; "r[1-2]n[0-1]" -> r1n0 r1n1 r2n0 r2n1. InvalidArgument on
// anything else and on more than limits::kMaxRanks names.
absl::StatusOr<std::vector<std::string>> ParseNodeList(std::string_view text);
// "3,1" -> 3 1; "2(x2)" -> 2 2.
absl::StatusOr<std::vector<int32_t>> ParseTasksPerNode(std::string_view text);

}  // namespace polyreme::launch
