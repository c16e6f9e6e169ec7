// The device's sampler against the CPU's, and against what probability says; skipped where there is
// no GPU. What the kernels compute is also tried without one: sample_math_test.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "tests/worker/sample_cases.h"
#include "worker/backend/backend.h"

namespace polyreme::backend {
namespace {

using ops::SampleSpec;
constexpr int64_t kTops = limits::kMaxLogprobs;

// A SampleCase in the memory of a device.
class OnDevice {
 public:
  OnDevice(Backend& backend, Lane& lane, const SampleCase& samples)
      : backend_(backend), lane_(lane), samples_(samples) {
    const int64_t rows = samples.num_samples;
    batch_.num_samples = samples.num_samples;
    batch_.vocabulary = samples.vocabulary;
    batch_.logits = {Upload(samples.logits), DType::kF32,
                     Shape({samples.shards, rows, samples.columns})};
    batch_.specs = Upload(samples.specs);
    batch_.host_specs = samples.specs.data();
    batch_.bias_tokens = Upload(samples.bias_tokens);
    batch_.bias_values = Upload(samples.bias_values);
    batch_.allowed_tokens = Upload(samples.allowed);
    batch_.token_counts = Upload(samples.counts);
    batch_.outputs = Upload(std::vector<ops::SampleOutput>(static_cast<size_t>(rows)));
    batch_.top_tokens = Upload(std::vector<int32_t>(static_cast<size_t>(rows * kTops)));
    batch_.top_logprobs = Upload(std::vector<float>(static_cast<size_t>(rows * kTops)));
    batch_.workspace = {Take(rows * samples.vocabulary * 4), DType::kF32,
                        Shape({rows, samples.vocabulary})};
  }

  void SetSpecs(const std::vector<SampleSpec>& specs) {
    EXPECT_TRUE(backend_.device()
                    .CopyFromHost(specs.data(), Bytes(specs), const_cast<SampleSpec*>(batch_.specs))
                    .ok());
    batch_.host_specs = specs.data();
  }
  void Run() { backend_.ops().Sample(lane_, batch_); }
  void Wait() {
    const absl::Status status = lane_.Wait(lane_.Mark(), MonotonicNow() + absl::Minutes(1));
    EXPECT_TRUE(status.ok()) << status;
  }
  SampleResults Results() {
    Wait();
    SampleResults results;
    const auto rows = static_cast<size_t>(samples_.num_samples);
    results.outputs.resize(rows);
    results.top_tokens.resize(rows * kTops);
    results.top_logprobs.resize(rows * kTops);
    results.counts.resize(samples_.counts.size());
    Download(batch_.outputs, results.outputs);
    Download(batch_.top_tokens, results.top_tokens);
    Download(batch_.top_logprobs, results.top_logprobs);
    Download(batch_.token_counts, results.counts);
    return results;
  }

 private:
  template <class T>
  static int64_t Bytes(const std::vector<T>& values) {
    return static_cast<int64_t>(values.size() * sizeof(T));
  }
  void* Take(int64_t bytes) {
    absl::StatusOr<Buffer> buffer = backend_.device().Allocate(bytes);
    CHECK(buffer.ok(), "{}", buffer.status().ToString());
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().data();
  }
  template <class T>
  T* Upload(const std::vector<T>& values) {
    void* to = Take(Bytes(values));
    const absl::Status status = backend_.device().CopyFromHost(values.data(), Bytes(values), to);
    EXPECT_TRUE(status.ok()) << status;
    return static_cast<T*>(to);
  }
  template <class T>
  void Download(const T* from, std::vector<T>& to) {
    const absl::Status status = backend_.device().CopyToHost(from, Bytes(to), to.data());
    EXPECT_TRUE(status.ok()) << status;
  }

  Backend& backend_;
  Lane& lane_;
  const SampleCase& samples_;
  std::vector<Buffer> buffers_;
  ops::SampleBatch batch_;
};

class DeviceSampler : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend("cuda", BackendOptions{});
    if (!backend.ok()) GTEST_SKIP() << "no GPU: " << backend.status();
    backend_ = *std::move(backend);
    absl::StatusOr<std::unique_ptr<Lane>> lane = backend_->device().MakeLane(1 << 20);
    ASSERT_TRUE(lane.ok()) << lane.status();
    lane_ = *std::move(lane);
  }
  // False once a batch has differed: one is enough to read.
  bool Compare(const SampleCase& samples) {
    OnDevice device(*backend_, *lane_, samples);
    device.Run();
    return ExpectSameResults(samples, samples.RunOnCpu(8), device.Results()) == 0 && lane_->ok();
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Lane> lane_;
};

TEST_F(DeviceSampler, DrawsWhatTheCpuDraws) {
  for (const int32_t vocabulary : {17, 1000, 4097}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      for (const int32_t shards : {1, 2, 4}) {
        for (const int32_t num_samples : {1, 24, 51}) {
          SCOPED_TRACE(fmt::format("vocabulary {} seed {} shards {}", vocabulary, seed, shards));
          if (!Compare(RandomCase(seed * 100 + static_cast<uint64_t>(shards), shards, vocabulary,
                                  num_samples))) {
            return;
          }
        }
      }
    }
  }
}

TEST_F(DeviceSampler, DrawsWhatTheCpuDrawsFromAWholeVocabulary) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    for (const int32_t num_samples : {1, 7, 64, 130}) {
      SCOPED_TRACE(fmt::format("seed {} of {} samples", seed, num_samples));
      if (!Compare(RandomCase(seed, 1 << seed % 3, 76800, num_samples))) return;
    }
  }
}

TEST_F(DeviceSampler, FindsABorderAmongThousandsOfEquals) {
  SampleCase samples(2, 76800, 8);
  for (int64_t s = 0; s < 8; ++s) {
    for (int64_t t = 0; t < samples.vocabulary; ++t) {
      samples.At(s, t) = s % 2 == 0 ? 1.0f : static_cast<float>(t % 3) * 0.5f;
    }
    SampleSpec& spec = samples.specs[static_cast<size_t>(s)];
    spec.seed = static_cast<uint64_t>(s);
    spec.slot = static_cast<int32_t>(s);
    if (s % 4 < 2) spec.top_k = 30000 + static_cast<int32_t>(s);
    if (s >= 3) spec.top_p = 0.5f;
  }
  Compare(samples);
}

TEST_F(DeviceSampler, ARowWithOneBadLogitFailsAlone) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const int64_t place : {0, 2047, 4096}) {
      SCOPED_TRACE(fmt::format("{} at {}", bad, place));
      SampleCase samples = RandomCase(5, 2, 4097, 9);
      for (int64_t s = 0; s < 9; ++s) {
        for (int64_t t = 0; t < 4097; ++t) samples.At(s, t) = static_cast<float>((t * 7 + s) % 31);
        SampleSpec spec;
        spec.slot = static_cast<int32_t>(s);
        spec.temperature = s % 2 == 0 ? 0.0f : 1.0f;
        samples.specs[static_cast<size_t>(s)] = spec;
      }
      samples.At(4, place) = samples.At(7, place) = bad;
      OnDevice device(*backend_, *lane_, samples);
      device.Run();
      const SampleResults got = device.Results();
      for (size_t s = 0; s < 9; ++s) {
        EXPECT_EQ(got.outputs[s].finite != 0, s != 4 && s != 7) << "row " << s;
      }
      ExpectSameResults(samples, samples.RunOnCpu(1), got);
    }
  }
}

// 10^6 draws each, seeds and positions differing.
TEST_F(DeviceSampler, DrawsFollowTheDistribution) {
  struct Filter {
    float temperature;
    int32_t top_k;
    float top_p;
    float min_p;
  };
  constexpr int32_t kRows = 4000;
  constexpr int kCalls = 250;
  for (const Filter& f :
       {Filter{1, 0, 1, 0}, Filter{0.7f, 0, 1, 0}, Filter{1.3f, 20, 1, 0}, Filter{1, 0, 0.85f, 0},
        Filter{0.6f, 20, 0.85f, 0}, Filter{1, 0, 1, 0.05f}}) {
    SCOPED_TRACE(fmt::format("temperature {} top_k {} top_p {} min_p {}", f.temperature, f.top_k,
                             f.top_p, f.min_p));
    SampleCase samples = RandomCase(11, 1, 200, kRows);
    std::vector<float> logits(200);
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 2);
    for (float& logit : logits) logit = normal(random);
    for (int64_t s = 0; s < kRows; ++s) {
      for (int64_t t = 0; t < 200; ++t) samples.At(s, t) = logits[static_cast<size_t>(t)];
      SampleSpec& spec = samples.specs[static_cast<size_t>(s)];
      spec = SampleSpec{};
      spec.temperature = f.temperature;
      spec.top_k = f.top_k;
      spec.top_p = f.top_p;
      spec.min_p = f.min_p;
    }
    OnDevice device(*backend_, *lane_, samples);
    std::vector<int64_t> counts(200);
    std::vector<SampleSpec> specs = samples.specs;
    for (int call = 0; call < kCalls; ++call) {
      for (int32_t s = 0; s < kRows; ++s) {
        specs[static_cast<size_t>(s)].seed = static_cast<uint64_t>(s);
        specs[static_cast<size_t>(s)].position = call;
      }
      device.SetSpecs(specs);
      device.Run();
      for (const ops::SampleOutput& out : device.Results().outputs) {
        ++counts[static_cast<size_t>(out.token)];
      }
    }
    ExpectDistributed(counts, ExactProbabilities(logits, samples.specs[0]));
  }
}

// For information: nothing is judged.
TEST_F(DeviceSampler, TellsItsTime) {
  struct Kind {
    const char* name;
    SampleSpec spec;
  };
  std::vector<Kind> kinds(6);
  kinds[0].name = "greedy";
  kinds[0].spec.temperature = 0;
  kinds[1].name = "temperature";
  kinds[2].name = "temperature 0.6, top-k 20, top-p 0.85";
  kinds[2].spec.temperature = 0.6f;
  kinds[2].spec.top_k = 20;
  kinds[2].spec.top_p = 0.85f;
  kinds[3].name = "top-p 0.9";
  kinds[3].spec.top_p = 0.9f;
  kinds[4].name = "greedy, 20 log-probabilities";
  kinds[4].spec.temperature = 0;
  kinds[4].spec.num_logprobs = 20;
  kinds[5].name = "padding";
  kinds[5].spec.kind = SampleSpec::Kind::kSkip;
  for (const int32_t num_samples : {1, 64, 256}) {
    SampleCase samples(2, 76800, num_samples);
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 2.5f);
    for (float& logit : samples.logits) logit = normal(random);
    OnDevice device(*backend_, *lane_, samples);
    for (const Kind& kind : kinds) {
      const std::vector<SampleSpec> specs(static_cast<size_t>(num_samples), kind.spec);
      device.SetSpecs(specs);
      device.Run();
      device.Wait();
      constexpr int kCalls = 50;
      const absl::Time start = MonotonicNow();
      for (int i = 0; i < kCalls; ++i) device.Run();
      device.Wait();
      fmt::print("{} x 76800, {}: {:.1f} us a call\n", num_samples, kind.name,
                 absl::ToDoubleMicroseconds(MonotonicNow() - start) / kCalls);
    }
  }
}

}  // namespace
}  // namespace polyreme::backend
