// A shared library opened while the program runs (the CUDA plugin, cuBLAS, NCCL), and its functions
// by name.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/types/span.h"
#include "parallel/base/status.h"

namespace polyreme {

// Move-only; closes the library when it goes. Whatever came out of the library must be gone by
// then, so that most owners never close (Leak).
class DynamicLibrary {
 public:
  // With a '/' in it, that file; else as the loader searches (LD_LIBRARY_PATH, rpath, ld.so.cache).
  // All of its symbols are resolved at once, none is given to other libraries. FailedPrecondition
  // with the loader's words.
  static absl::StatusOr<DynamicLibrary> Open(const std::string& name);
  // The first of `names` that opens. FailedPrecondition: "no <what>: <what the loader said to
  // each>".
  static absl::StatusOr<DynamicLibrary> OpenFirst(const std::string& what,
                                                  absl::Span<const std::string> names);

  // As asked for: a name or a path.
  const std::string& name() const { return name_; }

  // Finds `symbol` as a pointer of the caller's type:
  //   RETURN_IF_ERROR(library.Find("ncclGetVersion", get_version));
  // FailedPrecondition: the library has none, which is to say that it is too old.
  template <class Pointer>
  absl::Status Find(const char* symbol, Pointer& pointer) const {
    static_assert(std::is_pointer_v<Pointer>);
    ASSIGN_OR_RETURN(void* const address, Address(symbol));
    pointer = reinterpret_cast<Pointer>(address);
    return absl::OkStatus();
  }
  // For symbols that newer versions have: null where there is none.
  template <class Pointer>
  void FindOptional(const char* symbol, Pointer& pointer) const {
    static_assert(std::is_pointer_v<Pointer>);
    const absl::StatusOr<void*> address = Address(symbol);
    pointer = address.ok() ? reinterpret_cast<Pointer>(*address) : nullptr;
  }

  // Keeps the library open until the process ends.
  void Leak() { (void)handle_.release(); }

 private:
  struct Closer {
    void operator()(void* handle) const;
  };
  DynamicLibrary(std::string name, void* handle) : name_(std::move(name)), handle_(handle) {}
  absl::StatusOr<void*> Address(const char* symbol) const;

  std::string name_;
  std::unique_ptr<void, Closer> handle_;
};

}  // namespace polyreme
