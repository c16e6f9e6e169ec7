// A disk that fails at the N-th call, for every N of loading a checkpoint and its tokenizer: an
// error that names the file, never a crash, a hang, or a model that is not what the files say.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <functional>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/plan/model_spec.h"
#include "worker/weights/checkpoint.h"

namespace {

enum class Call { kNone, kOpen, kStat, kRead, kMap };

// The fault that is armed. The linker sends the calls of everything in this program here.
struct {
  Call call = Call::kNone;
  int countdown = 0;  // calls that still go well
  int error = 0;      // 0, of kRead: the file ends early
  bool has_struck = false;
} fault;

bool Strikes(Call call) {
  if (call != fault.call || fault.has_struck || fault.countdown-- > 0) return false;
  fault.has_struck = true;
  errno = fault.error;
  return true;
}

}  // namespace

extern "C" {
// The names are the linker's.
int __real_open(const char* path, int flags, ...);
int __real_fstat(int descriptor, struct stat* info);
ssize_t __real_read(int descriptor, void* bytes, size_t count);
void* __real_mmap(void* at, size_t size, int protection, int flags, int descriptor, off_t offset);

int __wrap_open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return Strikes(Call::kOpen) ? -1 : __real_open(path, flags, mode);
}
int __wrap_fstat(int descriptor, struct stat* info) {
  return Strikes(Call::kStat) ? -1 : __real_fstat(descriptor, info);
}
ssize_t __wrap_read(int descriptor, void* bytes, size_t count) {
  if (Strikes(Call::kRead)) return fault.error == 0 ? 0 : -1;
  return __real_read(descriptor, bytes, count);
}
void* __wrap_mmap(void* at, size_t size, int protection, int flags, int descriptor, off_t offset) {
  if (descriptor >= 0 && Strikes(Call::kMap)) return MAP_FAILED;
  return __real_mmap(at, size, protection, flags, descriptor, offset);
}
}

namespace polyreme {
namespace {

using Load = std::function<absl::Status()>;

// Fails each `call` of `load` in turn; returns how many there were.
int FailEach(Call call, int error, const Load& load, const std::string& directory) {
  for (int n = 0;; ++n) {
    fault = {call, n, error, false};
    const absl::Status status = load();
    const bool has_struck = fault.has_struck;
    fault = {};
    if (!has_struck) {
      EXPECT_TRUE(status.ok()) << status;
      return n;
    }
    EXPECT_FALSE(status.ok()) << "call " << n << " failed and nobody noticed";
    EXPECT_THAT(Message(status), testing::HasSubstr(directory + "/")) << "call " << n;
    EXPECT_TRUE(load().ok()) << "after the failure of call " << n;
    if (testing::Test::HasFailure()) return n;
  }
}

void FailEverything(const Load& load, const std::string& directory, int num_files, bool maps) {
  for (const int error : {EIO, EACCES, EMFILE, ENOMEM}) {
    EXPECT_GE(FailEach(Call::kOpen, error, load, directory), num_files);
    EXPECT_GE(FailEach(Call::kStat, error, load, directory), num_files);
    EXPECT_GT(FailEach(Call::kRead, error, load, directory), 0);
    EXPECT_GE(FailEach(Call::kMap, error, load, directory), maps ? num_files - 2 : 0);
  }
}

TEST(DiskFaults, OfACheckpointAtAnyCallAreErrorsThatNameTheFile) {
  const std::string directory = POLYREME_SOURCE_DIR "/tests/data/models/qwen2_sharded";
  const Load load = [&]() -> absl::Status {
    RETURN_IF_ERROR(plan::ReadModelSpec(directory).status());
    ASSIGN_OR_RETURN(const weights::Checkpoint checkpoint, weights::Checkpoint::Open(directory));
    return checkpoint.CheckUnchanged();
  };
  ASSERT_TRUE(load().ok()) << load();
  FailEverything(load, directory, 5, true);  // config, index, three files
}

TEST(DiskFaults, OfATokenizerAtAnyCallAreErrorsThatNameTheFile) {
  const std::string directory = POLYREME_SOURCE_DIR "/tests/data/tokenizer/qwen2";
  const Load load = [&]() -> absl::Status {
    RETURN_IF_ERROR(text::Tokenizer::Load(directory).status());
    return text::ChatTemplate::Load(directory).status();
  };
  ASSERT_TRUE(load().ok()) << load();
  FailEverything(load, directory, 2, false);
}

TEST(DiskFaults, AFileThatEndsEarlyIsAnErrorThatNamesIt) {
  const std::string directory = POLYREME_SOURCE_DIR "/tests/data/tokenizer/qwen2";
  const Load load = [&] { return text::Tokenizer::Load(directory).status(); };
  EXPECT_GT(FailEach(Call::kRead, 0, load, directory), 0);
}

}  // namespace
}  // namespace polyreme
