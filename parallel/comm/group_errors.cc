#include "parallel/comm/group_errors.h"

namespace polyreme::comm {

std::string NamePeers(const GroupSpec& group, absl::FunctionRef<bool(int peer)> chosen) {
  std::string names;
  int count = 0;
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer == group.rank || !chosen(peer)) continue;
    if (count++ > 0) names += ", ";
    names += fmt::format("{}", group.members[static_cast<size_t>(peer)].value);
  }
  return fmt::format("{} {}", count == 1 ? "rank" : "ranks", names);
}

absl::Status DidNotJoin(const GroupSpec& group, absl::FunctionRef<bool(int peer)> missing) {
  return DeadlineExceeded("{} did not join {} within {}", NamePeers(group, missing), group.name,
                          absl::FormatDuration(group.patience));
}

}  // namespace polyreme::comm
