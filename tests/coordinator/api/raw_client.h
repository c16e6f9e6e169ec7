// A client that sends exactly the bytes it is told: what a well-behaved library would never send.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace polyreme::api {

struct RawResponse {
  int32_t code = 0;
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;                                          // chunks joined

  std::string Header(std::string_view name) const;  // "" if absent
};

// A blocking connection to 127.0.0.1; every wait for the next bytes ends within the patience.
class RawClient {
 public:
  explicit RawClient(int32_t port, absl::Duration patience = absl::Seconds(10));
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void Send(std::string_view bytes);
  // Reads one response by its framing; nullopt if the connection ended or the wait did.
  std::optional<RawResponse> Read();
  // Its head only.
  std::optional<RawResponse> ReadHead();
  // Reads until `text` has come or the connection ends; all bytes so far.
  std::string ReadUntil(std::string_view text);
  // All bytes that have come and were not read, without waiting for more.
  std::string Received();
  // True if the peer closes (or resets) without sending anything more.
  bool IsClosedByPeer();
  // Ends our side: with unread bytes of the peer this is what a crashing client looks like.
  void Close();

 private:
  bool Fill(int flags = 0);

  int fd_ = -1;
  std::string input_;
};

// One request and its answer on a connection of its own; code 0 if there is none.
RawResponse Exchange(int32_t port, std::string_view bytes);

// A whole POST request with a JSON body.
std::string PostJson(std::string_view path, std::string_view body, std::string_view headers = "");
std::string Get(std::string_view path, std::string_view headers = "");

}  // namespace polyreme::api
