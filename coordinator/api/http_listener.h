// Where a server listens.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "coordinator/api/http_server.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// InvalidArgument: no address of this machine.
absl::StatusOr<boost::asio::ip::tcp::endpoint> Resolve(boost::asio::io_context& context,
                                                       const HttpServerOptions& options);
// Unavailable: somebody else listens there.
absl::Status Listen(boost::asio::ip::tcp::acceptor& acceptor,
                    const boost::asio::ip::tcp::endpoint& endpoint);

}  // namespace polyreme::api
