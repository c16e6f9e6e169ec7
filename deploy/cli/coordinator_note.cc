#include "deploy/cli/coordinator_note.h"

#include <fmt/format.h>

#include <utility>

#include "parallel/base/json.h"

namespace polyreme::cli {
namespace {

constexpr int64_t kMaxLosses = 32;  // of 15 characters each
constexpr int64_t kMaxPort = 65535;

absl::StatusOr<int64_t> IntOf(const Json& json, std::string_view name, int64_t min, int64_t max) {
  const Json* const value = json.Find(name);
  if (value == nullptr || !value->is_int() || value->as_int() < min || value->as_int() > max) {
    return DataLoss("a coordinator's note: expected '{}' from {} to {}", name, min, max);
  }
  return value->as_int();
}

}  // namespace

std::string CoordinatorNote::Encode() const {
  std::vector<int64_t> times;
  for (const absl::Time time : losses) times.push_back(absl::ToUnixMillis(time));
  if (std::ssize(times) > kMaxLosses) times.erase(times.begin(), times.end() - kMaxLosses);
  return fmt::format(
      R"({{"cluster":"{}","incarnation":{},"epoch":{},"http":{},"grpc":{},"losses":[{}]}})",
      cluster_address, incarnation, epoch.value, http_port, grpc_port, fmt::join(times, ","));
}

absl::StatusOr<CoordinatorNote> CoordinatorNote::Decode(std::string_view line) {
  ASSIGN_OR_RETURN(const Json json, Json::Parse(line));
  const Json* const address = json.is_object() ? json.Find("cluster") : nullptr;
  const Json* const losses = json.is_object() ? json.Find("losses") : nullptr;
  if (address == nullptr || !address->is_string() || losses == nullptr || !losses->is_array()) {
    return DataLoss("a coordinator's note: expected an object with 'cluster' and 'losses'");
  }
  constexpr int64_t kMax = int64_t{1} << 62;
  CoordinatorNote note;
  note.cluster_address = address->as_string();
  ASSIGN_OR_RETURN(note.incarnation, IntOf(json, "incarnation", 1, kMax));
  ASSIGN_OR_RETURN(note.epoch.value, IntOf(json, "epoch", 0, kMax));
  ASSIGN_OR_RETURN(const int64_t http_port, IntOf(json, "http", 0, kMaxPort));
  ASSIGN_OR_RETURN(const int64_t grpc_port, IntOf(json, "grpc", 0, kMaxPort));
  note.http_port = static_cast<int32_t>(http_port);
  note.grpc_port = static_cast<int32_t>(grpc_port);
  for (const Json& time : losses->as_array()) {
    if (!time.is_int()) return DataLoss("a coordinator's note: expected times in 'losses'");
    note.losses.push_back(absl::FromUnixMillis(time.as_int()));
  }
  return note;
}

CoordinatorNotebook::CoordinatorNotebook(CoordinatorNote note, launch::Heart& heart)
    : heart_(heart), note_(std::move(note)) {
  heart_.SetNote(note_.Encode());
}

void CoordinatorNotebook::SetClusterAddress(std::string address) {
  const std::lock_guard lock(mutex_);
  note_.cluster_address = std::move(address);
  heart_.SetNote(note_.Encode());
}

void CoordinatorNotebook::SetEpoch(Epoch epoch, const std::vector<absl::Time>& losses) {
  const std::lock_guard lock(mutex_);
  note_.epoch = epoch;
  note_.losses = losses;
  heart_.SetNote(note_.Encode());
}

void CoordinatorNotebook::SetPublicPorts(int32_t http_port, int32_t grpc_port) {
  const std::lock_guard lock(mutex_);
  note_.http_port = http_port;
  note_.grpc_port = grpc_port;
  heart_.SetNote(note_.Encode());
}

CoordinatorNote CoordinatorNotebook::note() const {
  const std::lock_guard lock(mutex_);
  return note_;
}

}  // namespace polyreme::cli
