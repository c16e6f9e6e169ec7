#include "coordinator/api/http_listener.h"

namespace polyreme::api {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

absl::StatusOr<tcp::endpoint> Resolve(asio::io_context& context, const HttpServerOptions& options) {
  ErrorCode error;
  tcp::resolver resolver(context);
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return InvalidArgument("host: expected an address or name of this machine, got '{}' ({})",
                           options.host, error.message());
  }
  return found.begin()->endpoint();
}

// Not SO_REUSEPORT: two servers must never share a port unnoticed. SO_REUSEADDR only lets a
// restarted one listen while old connections still close.
absl::Status Listen(tcp::acceptor& acceptor, const tcp::endpoint& endpoint) {
  ErrorCode error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return absl::OkStatus();
  const std::string where = fmt::format("{}:{}", endpoint.address().to_string(), endpoint.port());
  if (error == asio::error::address_in_use) {
    return Unavailable("port: {} is in use by another program; choose another with --port", where);
  }
  return InvalidArgument("cannot listen on {}: {}", where, error.message());
}

}  // namespace polyreme::api
