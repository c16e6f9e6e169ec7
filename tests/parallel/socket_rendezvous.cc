// Questions are "P<key>\0<value>", "W<microseconds>\0<key>" and "R<code>\0<text>\0<result>";
// answers "<code>\0<text>".

#include "tests/parallel/socket_rendezvous.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <vector>

#include "parallel/base/clock.h"

namespace polyreme::launch {
namespace {

std::vector<std::string> Split(const std::string& text, size_t fields) {
  std::vector<std::string> parts;
  size_t start = 0;
  while (parts.size() + 1 < fields) {
    const size_t end = std::min(text.find('\0', start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = std::min(end + 1, text.size());
  }
  parts.push_back(text.substr(start));
  return parts;
}

std::string ReadPacket(int socket) {
  std::array<char, 1 << 16> buffer;
  const ssize_t count = ::recv(socket, buffer.data(), buffer.size(), 0);
  return count > 0 ? std::string(buffer.data(), static_cast<size_t>(count)) : "";
}
void WritePacket(int socket, const std::string& packet) {
  CHECK(::send(socket, packet.data(), packet.size(), MSG_NOSIGNAL) == std::ssize(packet));
}
std::string Encode(const absl::Status& status, const std::string& text) {
  return fmt::format("{}{}{}", static_cast<int>(status.code()), '\0',
                     status.ok() ? text : Message(status));
}
absl::Status Decode(const std::string& code, const std::string& text) {
  const auto value = static_cast<absl::StatusCode>(std::stoi(code));
  return value == absl::StatusCode::kOk ? absl::OkStatus() : MakeStatus(value, text);
}

}  // namespace

absl::StatusOr<std::string> SocketRendezvous::Ask(const std::string& question) {
  WritePacket(socket_.get(), question);
  const std::string answer = ReadPacket(socket_.get());
  if (answer.empty()) return Unavailable("the parent is gone");
  const std::vector<std::string> fields = Split(answer, 2);
  RETURN_IF_ERROR(Decode(fields[0], fields[1]));
  return fields[1];
}

absl::Status SocketRendezvous::Put(std::string_view key, std::string value) {
  return Ask(fmt::format("P{}{}{}", key, '\0', value)).status();
}

absl::StatusOr<std::string> SocketRendezvous::Wait(std::string_view key, absl::Time deadline) {
  const int64_t left = absl::ToInt64Microseconds(deadline - MonotonicNow());
  return Ask(fmt::format("W{}{}{}", left, '\0', key));
}

void SocketRendezvous::Report(const absl::Status& status, const std::string& result) {
  WritePacket(socket_.get(), fmt::format("R{}{}{}", Encode(status, ""), '\0', result));
}

ChildReport ServeChild(int socket, InMemoryRendezvous& meet) {
  while (true) {
    const std::string packet = ReadPacket(socket);
    if (packet.empty()) return {Unavailable("ended without a word"), ""};
    if (packet[0] == 'R') {
      const std::vector<std::string> fields = Split(packet.substr(1), 3);
      return {Decode(fields[0], fields[1]), fields[2]};
    }
    const std::vector<std::string> fields = Split(packet.substr(1), 2);
    if (packet[0] == 'P') {
      WritePacket(socket, Encode(meet.Put(fields[0], fields[1]), ""));
      continue;
    }
    const absl::StatusOr<std::string> value =
        meet.Wait(fields[1], MonotonicNow() + absl::Microseconds(std::stoll(fields[0])));
    WritePacket(socket, Encode(value.status(), value.value_or("")));
  }
}

}  // namespace polyreme::launch
