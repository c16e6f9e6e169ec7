// The hash behind a checkpoint's fingerprint.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace polyreme::weights {

// FNV-1a, 64 bits: it finds accidents, not forgers.
class Fingerprint {
 public:
  void Add(const void* data, int64_t bytes) {
    const auto* byte = static_cast<const unsigned char*>(data);
    for (int64_t i = 0; i < bytes; ++i) value_ = (value_ ^ byte[i]) * 0x100000001b3ULL;
  }
  // With its length, so that two texts never run into each other.
  void Add(std::string_view text) {
    Add(static_cast<int64_t>(text.size()));
    Add(text.data(), static_cast<int64_t>(text.size()));
  }
  void Add(int64_t number) { Add(&number, sizeof number); }
  std::string ToString() const { return fmt::format("{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325ULL;
};

}  // namespace polyreme::weights
