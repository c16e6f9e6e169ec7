#include "parallel/comm/host_identity.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <fstream>

namespace polyreme::comm {
namespace {

std::string FirstLine(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::string HostIdentity() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  struct stat pids {};
  ::stat("/proc/self/ns/pid", &pids);
  // Machines cloned from one image may share the machine id, and ones woken from one snapshot the
  // boot id too; with the name of the host they differ. Whoever is wrong in spite of that fails to
  // open the memory.
  return fmt::format("{} (machine {}, boot {}, pid namespace {})", name.data(),
                     FirstLine("/etc/machine-id"), FirstLine("/proc/sys/kernel/random/boot_id"),
                     pids.st_ino);
}

}  // namespace polyreme::comm
