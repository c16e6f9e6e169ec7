// What `bench sweep`, `serve` and `cold` are aimed at: a URL, or a model that they serve themselves
// for as long as they run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "deploy/bench/child_server.h"
#include "deploy/bench/load_bench.h"
#include "deploy/bench/report.h"
#include "deploy/bench/sweep.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/flags.h"
#include "deploy/cli/serve_config.h"

namespace polyreme::cli {

inline constexpr char kOpenAiKeyVariable[] = "OPENAI_API_KEY";

// What the flags say.
struct BenchTargetConfig {
  std::string where;  // the operand: URL or MODEL
  std::string base_url;
  std::string host = "127.0.0.1";
  int32_t port = 0;  // 0: not given
  std::string backend = "openai";
  std::string endpoint;
  std::string model;
  std::string api_key;
  std::string dtype = "auto";
  std::string extra_body;
  std::string output;
  bool no_usage = false;
  bool no_roofline = false;
  bool ignore_eos = false;
  double temperature = 0;
  int32_t client_threads = 1;
  int32_t num_warmups = 1;
  absl::Duration ready_timeout = absl::Minutes(30);
  absl::Duration request_timeout = absl::Minutes(10);
  std::string slo;
  // For MODEL: flags of `serve`.
  int32_t shards = 0;  // 0: not given, each
  int32_t stages = 0;
  std::string device;
  std::string load_format;
  Arguments serve_arguments;  // behind "--"

  bool is_url() const;  // else a model's directory
};
void AddTargetFlags(FlagSet& flags, BenchTargetConfig& config);
void AddServerFlags(FlagSet& flags, BenchTargetConfig& config);  // of MODEL only
// Takes what is behind "--" off the arguments.
void TakeServeArguments(Arguments& arguments, BenchTargetConfig& config);
// Takes URL or MODEL from the operands or from --base-url, --host and --port, and checks how flags
// relate. InvalidArgument.
absl::Status CompleteTarget(const Arguments& operands, BenchTargetConfig& config);

// What was made of it.
struct BenchTarget {
  bench::LoadBenchOptions load;
  Json settings = Json::MakeObject();  // model, dtype, and how it is served
  bench::SweepRoofline roofline;
  std::string roofline_text;                   // of the conditions
  std::unique_ptr<bench::ChildServer> server;  // of MODEL
  std::string server_log;                      // "" if kept nowhere
  int32_t vocabulary = 0;                      // of MODEL; 0: unknown
};
// Measures the roofline and starts the server (MODEL), or asks what is served there (URL). Each
// error is one sentence.
absl::StatusOr<BenchTarget> ReachTarget(const BenchTargetConfig& config);
// Ends the server, if there is one, and removes its log if that was a temporary file.
absl::Status LeaveTarget(BenchTarget& target, const BenchTargetConfig& config);

// Of MODEL: `serve`'s own flags, complete and checked.
absl::StatusOr<ServeConfig> ServeConfigOf(const BenchTargetConfig& config);
bench::ChildServerOptions ChildOptionsOf(const BenchTargetConfig& config, std::string& log_path);

// "polyreme bench ..." as it was typed, without keys.
std::string CommandLineOf(const Arguments& arguments);
bench::Conditions ConditionsOf(const Arguments& arguments);
// Adds conditions, prints the report, writes it where --output says, and returns the
// exit code: 130 after an interrupt.
int FinishReport(bench::Report report, const Arguments& arguments, const std::string& output);
// Prints "polyreme bench: MESSAGE" and returns the exit code.
int FailBench(const absl::Status& status);

}  // namespace polyreme::cli
