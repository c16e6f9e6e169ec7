#include "tests/e2e/two_hosts.h"

#include <fmt/format.h>

#include <csignal>

namespace polyreme::e2e {

std::unique_ptr<Program> TwoHosts::StartRank(int rank, const HostOptions& options) {
  return Program::Start({POLYREME_BINARY,
                         "serve",
                         kDemoModel,
                         options.layout,
                         "2",
                         "--port",
                         "0",
                         "--rank",
                         std::to_string(rank),
                         "--world-size",
                         "2",
                         "--coordinator",
                         options.coordinator,
                         "--transport",
                         "tcp",
                         "--listen-address",
                         options.address,
                         "--host-identity",
                         fmt::format("host-{}", rank),
                         "--join-timeout",
                         options.join_timeout,
                         "--max-restarts",
                         options.max_restarts},
                        {{"POLYREME_JOB_TOKEN", "a-token-of-this-test-0123456789"}});
}

void TwoHosts::AwaitServing() {
  const auto http = first_->WaitForLine("at http://127.0.0.1:", absl::Seconds(60));
  ASSERT_TRUE(http.has_value()) << Output();
  cluster_.port = std::stoi(*http);
  want_ = Tell(cluster_);
}

std::string TwoHosts::Output() const {
  return first_->output() + "\n--- the second host:\n" + second_->output();
}

void TwoHosts::ExpectOrderlyEnd() {
  first_->Signal(SIGTERM);
  EXPECT_EQ(first_->WaitForExit(absl::Seconds(30)), 0) << Output();
  EXPECT_EQ(second_->WaitForExit(absl::Seconds(30)), 0) << Output();
}

}  // namespace polyreme::e2e
