// Which function answers which path, and who may ask: decided once, from the parsed head, before a
// body is read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/api_keys.h"
#include "coordinator/api/http_message.h"
#include "coordinator/api/http_server.h"

namespace polyreme::api {

enum class Access {
  kKey,   // needs a key, if the server has keys
  kOpen,  // for probes that have none
};

struct Route {
  std::string method;  // "GET" answers HEAD too
  std::string path;    // exact, or ending in "/*": whatever follows the slash
  Access access = Access::kKey;
  // Called on the connection's thread with the whole request; must not block.
  std::function<void(HttpRequest, std::shared_ptr<HttpResponder>)> handle;
};

// Immutable after it is made; any thread.
class Router {
 public:
  // keys borrowed; outlives the router.
  Router(std::vector<Route> routes, const ApiKeys& keys);

  // Sets the request's id and route, and refuses: 401 without a key, 403 for a foreign Host or
  // Origin where no key protects, 404, 405 with Allow, 415 for a POST that is not JSON.
  std::optional<HttpResponse> Admit(HttpRequest& head) const;
  // Hands an admitted request to its route.
  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) const;

 private:
  const Route* Find(std::string_view method, std::string_view path) const;
  std::string AllowedMethods(std::string_view path) const;

  const std::vector<Route> routes_;
  const ApiKeys& keys_;
};

}  // namespace polyreme::api
