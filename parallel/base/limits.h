// Every bound of the system in one place, and how they relate.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace polyreme::limits {

// Cluster.
inline constexpr int32_t kMaxRanks = 256;
inline constexpr int32_t kMaxStages = 64;
// A sum over a sharded axis is always this many segments added in one fixed tree
// (docs/ARCHITECTURE.md).
inline constexpr int32_t kSumSegments = 8;
inline constexpr int32_t kMaxStepsInFlight = kMaxStages + 1;

// Meetings.
inline constexpr int64_t kMaxMeetingKeyBytes = 256;
inline constexpr int64_t kMaxMeetingValueBytes = 64 << 10;
inline constexpr int64_t kMaxMeetingKeys = 64 * kMaxRanks;
inline constexpr int32_t kMaxUnprovenConnections =
    64;  // strangers on a listener inside the cluster
// Collectives.
inline constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;  // between two ranks

// Models. Together they keep the number of parameters, in bytes, within int64.
inline constexpr int32_t kMaxLayers = 4096;
inline constexpr int32_t kMaxModelWidth = 1 << 22;  // hidden and feed-forward
inline constexpr int32_t kMaxHeads = 1 << 14;
inline constexpr int32_t kMaxHeadDim = 1024;

// Checkpoints. The format's own reader has the same bound on headers.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = int64_t{100} * 1000 * 1000;
inline constexpr int32_t kMaxTensorsPerFile = 100 * 1000;
inline constexpr int32_t kMaxCheckpointFiles = 4096;

// Steps.
inline constexpr int32_t kMaxSequences = 4096;  // slots
inline constexpr int32_t kMaxStepTokens = 1 << 20;
inline constexpr int32_t kMaxPositions = 1 << 24;  // tokens of one sequence
inline constexpr int32_t kMaxBlocks = 1 << 26;
inline constexpr int32_t kMaxTokensPerBlock = 1024;
inline constexpr int64_t kMaxWireMessageBytes = int64_t{64} << 20;

// Requests.
inline constexpr int32_t kMaxChoices = 1024;  // n
inline constexpr int32_t kMaxPrompts = 1024;  // prompts of one completion request
inline constexpr int32_t kMaxLogprobs = 20;   // top log-probabilities per token, as OpenAI and vLLM
inline constexpr int32_t kMaxStopStrings = 16;
inline constexpr int32_t kMaxStopStringBytes = 1024;
inline constexpr int32_t kMaxStopTokens = 256;
inline constexpr int32_t kMaxLogitBias = 1024;
inline constexpr int32_t kMaxAllowedTokens = 4096;
inline constexpr int32_t kMaxMessages = 4096;
inline constexpr int32_t kMaxWaitingSequences = 4096;
inline constexpr int32_t kMaxMailbox = 8192;
inline constexpr int32_t kTokenStreamCapacity = 1024;  // pieces a client may be behind

// Text.
inline constexpr int64_t kMaxPromptBytes = int64_t{8} << 20;
inline constexpr int32_t kMaxVocabulary = 1 << 20;
inline constexpr int64_t kMaxTokenizerFileBytes = int64_t{256} << 20;
inline constexpr int64_t kMaxConfigFileBytes = int64_t{4} << 20;
inline constexpr int64_t kMaxTemplateBytes = int64_t{1} << 20;
inline constexpr int64_t kMaxTemplateOutputBytes = int64_t{16} << 20;
inline constexpr int64_t kMaxTemplateSteps = int64_t{5} * 1000 * 1000;
inline constexpr int32_t kMaxTemplateDepth = 200;  // of a template's tree, and of a value it makes
inline constexpr int32_t kMaxTemplateNesting =
    1000;  // evaluations inside one another, macros included
inline constexpr int64_t kMaxTemplateWorkBytes = int64_t{256} << 20;  // text copied while rendering

// JSON.
inline constexpr int32_t kMaxJsonDepth = 64;
inline constexpr int64_t kMaxJsonBytes = int64_t{512} << 20;
// A value takes 40 bytes of memory or more, and two bytes of text: of files, and of what the public
// sends.
inline constexpr int64_t kMaxJsonValues = int64_t{16} << 20;
inline constexpr int64_t kMaxHttpJsonValues = int64_t{4} << 20;

// HTTP.
inline constexpr int64_t kMaxHttpHeaderBytes = 32 << 10;
inline constexpr int64_t kMaxHttpBodyBytes = int64_t{32} << 20;
inline constexpr int64_t kMaxHttpBodiesBytes = int64_t{512}
                                               << 20;  // of all requests being read or answered
inline constexpr int64_t kMaxHttpPendingBytes = int64_t{4}
                                                << 20;  // written to one client and not yet sent
inline constexpr int32_t kHttpSendBufferBytes = 256 << 10;  // the kernel's own, of one connection
inline constexpr int32_t kMaxHttpConnections = 4096;
inline constexpr int32_t kMaxGrpcCalls = 4096;  // public ones, running at once
inline constexpr absl::Duration kHttpHeaderDeadline = absl::Seconds(10);
inline constexpr absl::Duration kHttpBodyDeadline = absl::Seconds(60);
inline constexpr absl::Duration kHttpIdleDeadline = absl::Seconds(75);
inline constexpr absl::Duration kHttpWriteDeadline = absl::Seconds(60);
inline constexpr absl::Duration kHttpLingerDeadline = absl::Seconds(2);

// Answers kept under an Idempotency-Key.
inline constexpr int64_t kMaxIdempotencyKeyBytes = 255;
inline constexpr int32_t kMaxIdempotencyKeys = 4096;
inline constexpr int64_t kMaxKeptAnswerBytes = int64_t{64} << 20;
inline constexpr int64_t kMaxKeptAnswersBytes = int64_t{256} << 20;
inline constexpr absl::Duration kIdempotencyTtl = absl::Minutes(10);

// Held back for the engine thread: a step of many sequences, several times over.
inline constexpr size_t kMemoryReserveBytes = size_t{8} << 20;

// Waits inside the cluster.
inline constexpr absl::Duration kStepPatience = absl::Seconds(120);
inline constexpr absl::Duration kCollectivePatience = absl::Seconds(120);
inline constexpr absl::Duration kJoinGroupPatience = absl::Seconds(60);
inline constexpr absl::Duration kRpcPatience = absl::Seconds(10);
inline constexpr absl::Duration kConnectionProofPatience =
    absl::Seconds(10);  // of a connection that comes in
inline constexpr absl::Duration kPeerCheckInterval =
    absl::Milliseconds(100);  // is a silent peer still alive?
inline constexpr absl::Duration kEngineIdle = absl::Milliseconds(200);
inline constexpr absl::Duration kEngineProgressPatience =
    absl::Seconds(30);  // without a commit, health says no
inline constexpr absl::Duration kEngineTurnPatience =
    absl::Seconds(4);  // for its thread to come round; then the coordinator's heart stops
inline constexpr absl::Duration kIoTurnPatience =
    absl::Seconds(10);  // for an I/O thread of the HTTP server; then it stops too
inline constexpr absl::Duration kEngineStopPatience =
    absl::Seconds(5);  // then a hanging step is aborted

static_assert(kMaxJsonDepth < kMaxTemplateDepth, "a template may walk any message that parses");
static_assert(kMaxPromptBytes * 2 <= kMaxTemplateOutputBytes,
              "a longest prompt fits a rendered chat");
static_assert(kMaxTemplateOutputBytes <= kMaxTemplateWorkBytes, "what is printed is also copied");
static_assert(kMaxSequences <= kMaxWaitingSequences, "all that run could be sent back to waiting");
static_assert(kMaxChoices <= kMaxSequences, "one request's choices fit the slots");
static_assert(kMaxPromptBytes < kMaxHttpBodyBytes, "a longest prompt fits a body");
static_assert(int64_t{kMaxStepTokens} * 4 < kMaxWireMessageBytes,
              "a step's tokens fit one message");

}  // namespace polyreme::limits
