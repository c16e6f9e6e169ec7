// Errors as values: makers of absl::Status with formatted messages, and the macros that pass them
// on.
//
// A message says what was expected, what came, and where. CHECK is for our own mistakes only and
// stays on in Release. Debian's abseil has its own string_view, so messages are std::string on this
// side.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace polyreme {

inline absl::Status MakeStatus(absl::StatusCode code, std::string_view message) {
  return absl::Status(code, absl::string_view(message.data(), message.size()));
}

#define POLYREME_DEFINE_STATUS(Name, code)                                     \
  template <class... Args>                                                     \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {      \
    return MakeStatus(code, fmt::format(format, std::forward<Args>(args)...)); \
  }
POLYREME_DEFINE_STATUS(InvalidArgument, absl::StatusCode::kInvalidArgument)
POLYREME_DEFINE_STATUS(NotFound, absl::StatusCode::kNotFound)
POLYREME_DEFINE_STATUS(AlreadyExists, absl::StatusCode::kAlreadyExists)
POLYREME_DEFINE_STATUS(FailedPrecondition, absl::StatusCode::kFailedPrecondition)
POLYREME_DEFINE_STATUS(ResourceExhausted, absl::StatusCode::kResourceExhausted)
POLYREME_DEFINE_STATUS(Unavailable, absl::StatusCode::kUnavailable)
POLYREME_DEFINE_STATUS(DeadlineExceeded, absl::StatusCode::kDeadlineExceeded)
POLYREME_DEFINE_STATUS(DataLoss, absl::StatusCode::kDataLoss)
POLYREME_DEFINE_STATUS(Unauthenticated, absl::StatusCode::kUnauthenticated)
POLYREME_DEFINE_STATUS(Unimplemented, absl::StatusCode::kUnimplemented)
POLYREME_DEFINE_STATUS(Cancelled, absl::StatusCode::kCancelled)
POLYREME_DEFINE_STATUS(Internal, absl::StatusCode::kInternal)
POLYREME_DEFINE_STATUS(OutOfRange, absl::StatusCode::kOutOfRange)
#undef POLYREME_DEFINE_STATUS

// The message of a status as our own string type.
inline std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

// "where: message", same code. An ok status stays ok.
inline absl::Status Annotate(const absl::Status& status, std::string_view where) {
  if (status.ok()) return status;
  return MakeStatus(status.code(), fmt::format("{}: {}", where, Message(status)));
}

namespace internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);
}  // namespace internal

}  // namespace polyreme

// Crashes with file, line and message if `condition` is false: an impossible state, never bad
// input.
#define CHECK(condition, ...)                                                                   \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::polyreme::internal::CheckFailed(__FILE__, __LINE__, #condition,                         \
                                        ::std::string{__VA_OPT__(::fmt::format(__VA_ARGS__))}); \
  } while (false)

#define RETURN_IF_ERROR(expression)                                           \
  do {                                                                        \
    if (::absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define POLYREME_CONCAT_INNER(a, b) a##b
#define POLYREME_CONCAT(a, b) POLYREME_CONCAT_INNER(a, b)
#define POLYREME_ASSIGN_OR_RETURN(result, left, expression) \
  auto result = (expression);                               \
  if (!result.ok()) return std::move(result).status();      \
  left = std::move(result).value()

// ASSIGN_OR_RETURN(const Foo foo, MakeFoo()): declares or assigns, or returns the error.
#define ASSIGN_OR_RETURN(left, ...) \
  POLYREME_ASSIGN_OR_RETURN(POLYREME_CONCAT(status_or_, __LINE__), left, (__VA_ARGS__))
