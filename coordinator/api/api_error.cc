#include "coordinator/api/api_error.h"

#include <algorithm>
#include <string>
#include <utility>

#include "parallel/base/log.h"

namespace polyreme::api {
namespace {

constexpr std::string_view kInternalMessage = "internal error; the server's log says more";

constexpr std::pair<int32_t, std::string_view> kTypes[] = {
    {401, "AuthenticationError"}, {403, "PermissionDeniedError"}, {404, "NotFoundError"},
    {408, "RequestTimeoutError"}, {409, "ConflictError"},         {422, "UnprocessableEntityError"},
    {429, "RateLimitError"},      {501, "NotImplementedError"},   {503, "ServiceUnavailableError"},
    {504, "TimeoutError"},
};

std::string_view TypeOf(int32_t code) {
  for (const auto& [known, text] : kTypes) {
    if (known == code) return text;
  }
  return code >= 500 ? "InternalServerError" : "BadRequestError";
}

// "stream_options.include_usage: expected ..." → the field; nothing if the message begins
// otherwise.
std::string_view FieldOf(std::string_view message) {
  const size_t colon = message.find(": ");
  if (colon == std::string_view::npos || colon == 0) return {};
  const std::string_view field = message.substr(0, colon);
  const bool is_name = std::all_of(field.begin(), field.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '[' ||
           c == ']';
  });
  return is_name ? field : std::string_view();
}

// What a client may read of it: texts of internal errors can hold paths and addresses.
std::string PublicMessage(const absl::Status& status) {
  const bool is_internal =
      status.code() == absl::StatusCode::kInternal || status.code() == absl::StatusCode::kUnknown;
  if (!is_internal) return Message(status);
  LogError("a request failed: {}", Message(status));
  return std::string(kInternalMessage);
}

}  // namespace

int32_t HttpCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

bool IsPassing(int32_t code) {
  return (code >= 400 && code < 500) || code == 503 || code == 504;
}

Json ErrorJson(int32_t code, std::string_view message) {
  const std::string_view field = code == 400 || code == 404 ? FieldOf(message) : std::string_view();
  return Json::MakeObject({{"message", message},
                           {"type", TypeOf(code)},
                           {"param", field.empty() ? Json() : Json(field)},
                           {"code", code}});
}

Json ErrorJson(const absl::Status& status) {
  return ErrorJson(HttpCode(status), PublicMessage(status));
}

HttpResponse ErrorResponse(int32_t code, std::string_view message) {
  HttpResponse response;
  response.code = code;
  response.body = Json::MakeObject({{"error", ErrorJson(code, message)}}).Dump();
  if (code == 429 || code == 503) response.headers.push_back({"Retry-After", "1"});
  return response;
}

HttpResponse ErrorResponse(const absl::Status& status) {
  return ErrorResponse(HttpCode(status), PublicMessage(status));
}

}  // namespace polyreme::api
