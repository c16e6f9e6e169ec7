// Which device a cluster computes on, where the flags leave it open.
#pragma once

#include <string>

#include "deploy/cli/serve_config.h"
#include "worker/backend/backend.h"

namespace polyreme::cli {

// Settles --device auto: "cuda" if the plugin opens and shows a GPU, "cpu" where there is no
// plugin, no driver or no GPU at all; a plugin, driver or library that is there and does not work
// is an error, never a reason to fall back. Then SetDeviceDefaults. For those that start processes;
// what they start is told the device. Returns a line that tells what was chosen and why; empty
// where nothing was left open.
absl::StatusOr<std::string> SettleDevice(ServeConfig& config);
// For --device cuda: in one sentence what is missing, before any rank starts. Ok for cpu.
absl::Status CheckDevice(const ServeConfig& config);

// What --attention-backend says; its values are checked where flags are parsed.
backend::AttentionChoice AttentionOf(const std::string& flag);

// Where what was measured on this host is kept between runs: $XDG_CACHE_HOME/polyreme or
// ~/.cache/polyreme; empty if neither can be told.
std::string CacheDirectory();

}  // namespace polyreme::cli
