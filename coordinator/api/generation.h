// Runs one call: hands its requests to the engine and carries what comes back to the client as it
// comes.
#pragma once

#include <memory>

#include "coordinator/api/backend.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_request.h"

namespace polyreme::api {

// Returns at once; the answer follows through `responder`. If the client leaves, or reads so slowly
// that its stream overflows, its generations are cancelled. `context` outlives the server that
// `responder` belongs to. http_id: of the HTTP request. Any thread.
void RunGeneration(const ApiContext& context, GenerationCall call, const std::string& http_id,
                   std::shared_ptr<HttpResponder> responder);

}  // namespace polyreme::api
