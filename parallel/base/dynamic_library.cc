#include "parallel/base/dynamic_library.h"

#include <dlfcn.h>

#include <utility>

namespace polyreme {
namespace {

// The loader's last words on this thread.
std::string LoaderError() {
  const char* said = dlerror();
  return said == nullptr ? "the loader gave no reason" : said;
}

}  // namespace

void DynamicLibrary::Closer::operator()(void* handle) const {
  dlclose(handle);
}

absl::StatusOr<DynamicLibrary> DynamicLibrary::Open(const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return FailedPrecondition("cannot open {}: {}", name, LoaderError());
  return DynamicLibrary(name, handle);
}

absl::StatusOr<DynamicLibrary> DynamicLibrary::OpenFirst(const std::string& what,
                                                         absl::Span<const std::string> names) {
  std::string reasons;
  for (const std::string& name : names) {
    absl::StatusOr<DynamicLibrary> library = Open(name);
    if (library.ok()) return library;
    reasons += (reasons.empty() ? "" : "; ") + Message(library.status());
  }
  return FailedPrecondition("no {}: {}", what, reasons);
}

absl::StatusOr<void*> DynamicLibrary::Address(const char* symbol) const {
  CHECK(handle_ != nullptr, "{} was leaked or moved from", name_);
  void* address = dlsym(handle_.get(), symbol);
  if (address == nullptr)
    return FailedPrecondition("{} has no {}: {}", name_, symbol, LoaderError());
  return address;
}

}  // namespace polyreme
