#include "tests/coordinator/api/raw_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>

#include "parallel/base/status.h"

namespace polyreme::api {
namespace {

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return text;
}

}  // namespace

std::string RawResponse::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return "";
}

RawClient::RawClient(int32_t port, absl::Duration patience)
    : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const timeval timeout = absl::ToTimeval(patience);
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "port {}", port);
}

RawClient::~RawClient() {
  Close();
}

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;  // the server may refuse and close before it has read all
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

bool RawClient::Fill(int flags) {
  std::array<char, 16384> buffer;
  const ssize_t got = recv(fd_, buffer.data(), buffer.size(), flags);
  if (got <= 0) return false;
  input_.append(buffer.data(), static_cast<size_t>(got));
  return true;
}

std::optional<RawResponse> RawClient::ReadHead() {
  size_t end = 0;
  while ((end = input_.find("\r\n\r\n")) == std::string::npos) {
    if (!Fill()) return std::nullopt;
  }
  RawResponse response;
  response.code = std::stoi(input_.substr(9, 3));
  size_t at = input_.find("\r\n") + 2;
  while (at < end + 2) {
    const size_t line_end = input_.find("\r\n", at);
    const size_t colon = input_.find(": ", at);
    response.headers.emplace_back(Lower(input_.substr(at, colon - at)),
                                  input_.substr(colon + 2, line_end - colon - 2));
    at = line_end + 2;
  }
  input_.erase(0, end + 4);
  return response;
}

std::optional<RawResponse> RawClient::Read() {
  std::optional<RawResponse> response = ReadHead();
  if (!response.has_value()) return std::nullopt;
  if (response->Header("transfer-encoding") == "chunked") {
    for (;;) {
      size_t line = 0;
      while ((line = input_.find("\r\n")) == std::string::npos) {
        if (!Fill()) return std::nullopt;
      }
      const size_t size = std::stoul(input_.substr(0, line), nullptr, 16);
      while (input_.size() < line + 2 + size + 2) {
        if (!Fill()) return std::nullopt;
      }
      response->body += input_.substr(line + 2, size);
      input_.erase(0, line + 2 + size + 2);
      if (size == 0) return response;
    }
  }
  if (response->Header("content-length").empty()) {
    while (Fill()) {
    }
    response->body = std::exchange(input_, "");
    return response;
  }
  const size_t length = std::stoul(response->Header("content-length"));
  while (input_.size() < length) {
    if (!Fill()) return std::nullopt;
  }
  response->body = input_.substr(0, length);
  input_.erase(0, length);
  return response;
}

std::string RawClient::ReadUntil(std::string_view text) {
  while (input_.find(text) == std::string::npos && Fill()) {
  }
  return input_;
}

std::string RawClient::Received() {
  while (Fill(MSG_DONTWAIT)) {
  }
  return input_;
}

bool RawClient::IsClosedByPeer() {
  if (!input_.empty()) return false;
  std::array<char, 1> byte;
  const ssize_t got = recv(fd_, byte.data(), byte.size(), 0);
  return got == 0 || (got < 0 && errno == ECONNRESET);
}

RawResponse Exchange(int32_t port, std::string_view bytes) {
  RawClient client(port);
  client.Send(bytes);
  return client.Read().value_or(RawResponse());
}

std::string PostJson(std::string_view path, std::string_view body, std::string_view headers) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\n{}\r\n{}",
      path, body.size(), headers, body);
}

std::string Get(std::string_view path, std::string_view headers) {
  return fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", path, headers);
}

}  // namespace polyreme::api
