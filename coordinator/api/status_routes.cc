#include "coordinator/api/status_routes.h"

#include <string>

#include "coordinator/api/api_error.h"
#include "parallel/base/json.h"

namespace polyreme::api {
namespace {

using Responder = std::shared_ptr<HttpResponder>;

// Everything a browser needs is in this text: no other file, no other host.
constexpr std::string_view kPage = R"html(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>polyreme</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; }
.good { color: #0a7d32; } .bad { color: #b00020; }
</style>
<h1>polyreme</h1>
<p>Serving <b>@MODEL@</b>, up to @LENGTH@ tokens: <b class="@CLASS@">@STATE@</b>.
<br>@RUNNING@ running, @WAITING@ waiting, @STEPS@ steps so far.</p>
<pre>curl http://@HOST@/v1/completions \
  -H 'Content-Type: application/json' \
  -d '{"model": "@MODEL@", "prompt": "def fibonacci(n):", "max_tokens": 64}'</pre>
<p><a href="/v1/models">models</a> &middot; <a href="/health">health</a> &middot;
<a href="/metrics">metrics</a> &middot; <a href="/version">version</a></p>
</html>
)html";

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

void Fill(std::string& page, std::string_view place, std::string_view value) {
  const std::string escaped = EscapeHtml(value);
  for (size_t at = page.find(place); at != std::string::npos;
       at = page.find(place, at + escaped.size())) {
    page.replace(at, place.size(), escaped);
  }
}

HttpResponse Page(const ApiContext& context, const HttpRequest& request) {
  const engine::EngineHealth health = context.backend.health();
  const std::string* host = request.Header("host");
  std::string page(kPage);
  Fill(page, "@HOST@", host == nullptr ? "localhost" : *host);
  Fill(page, "@MODEL@", context.model.limits.model_name);
  Fill(page, "@LENGTH@", std::to_string(context.model.limits.max_model_len));
  Fill(page, "@CLASS@", health.serving ? "good" : "bad");
  Fill(page, "@STATE@", health.serving ? "serving" : health.reason);
  Fill(page, "@RUNNING@", std::to_string(health.num_running));
  Fill(page, "@WAITING@", std::to_string(health.num_waiting));
  Fill(page, "@STEPS@", std::to_string(health.steps_committed));
  return {.content_type = "text/html; charset=utf-8",
          .body = std::move(page),
          .headers = {{"Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"},
                      {"X-Content-Type-Options", "nosniff"}}};
}

HttpResponse Health(const ApiContext& context, const HttpRequest&) {
  const engine::EngineHealth health = context.backend.health();
  if (!health.serving) return ErrorResponse(503, health.reason);
  return {.body = Json::MakeObject(
                      {{"status", "ok"},
                       {"num_running", health.num_running},
                       {"num_waiting", health.num_waiting},
                       {"steps_committed", health.steps_committed},
                       {"seconds_since_progress", absl::ToDoubleSeconds(health.since_progress)}})
                      .Dump()};
}

HttpResponse Version(const ApiContext& context, const HttpRequest&) {
  return {.body = Json::MakeObject({{"version", context.model.version}}).Dump()};
}

HttpResponse Load(const ApiContext& context, const HttpRequest&) {
  const engine::EngineHealth health = context.backend.health();
  return {.body =
              Json::MakeObject({{"server_load", health.num_running + health.num_waiting}}).Dump()};
}

HttpResponse MetricsText(const ApiContext& context, const HttpRequest&) {
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = context.metrics.Render()};
}

Route Answers(const ApiContext& context, std::string path, Access access,
              HttpResponse (*answer)(const ApiContext&, const HttpRequest&)) {
  return {.method = "GET",
          .path = std::move(path),
          .access = access,
          .handle = [&context, answer](const HttpRequest& request, const Responder& responder) {
            responder->Send(answer(context, request));
          }};
}

}  // namespace

std::vector<Route> StatusRoutes(const ApiContext& context) {
  return {
      Answers(context, "/health", Access::kOpen, Health),
      Answers(context, "/ping", Access::kOpen, Health),
      Answers(context, "/version", Access::kKey, Version),
      Answers(context, "/load", Access::kKey, Load),
      Answers(context, "/metrics", Access::kKey, MetricsText),
      Answers(context, "/", Access::kKey, Page),
  };
}

}  // namespace polyreme::api
