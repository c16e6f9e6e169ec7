#include "tests/e2e/stories.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace polyreme::e2e {
namespace {

// A hang is found within 10 s, and what was lost is computed again.
constexpr absl::Duration kDisturbance = absl::Seconds(40);

constexpr char kEnd[] = "data: [DONE]";

std::string Request(const std::string& prompt, int max_tokens, const std::string& more) {
  return fmt::format(
      R"({{"model":"demo-model","prompt":"{}","max_tokens":{},"ignore_eos":true,"stream":true,{}}})",
      prompt, max_tokens, more);
}

Story StoryOf(const std::string& bytes) {
  Story story;
  EXPECT_THAT(bytes, testing::HasSubstr(kEnd));
  for (size_t at = bytes.find("data: {"); at != std::string::npos;
       at = bytes.find("data: {", at + 1)) {
    const std::string line = bytes.substr(at + 6, bytes.find('\n', at) - at - 6);
    const absl::StatusOr<Json> event = Json::Parse(line);
    EXPECT_TRUE(event.ok()) << line;
    if (!event.ok() || event->Find("choices") == nullptr) {
      ADD_FAILURE() << line;
      continue;
    }
    for (const Json& choice : event->Find("choices")->as_array()) {
      std::string& text = story[choice.Find("index")->as_int()];
      text += choice.Find("text")->as_string();
      const Json* const finish = choice.Find("finish_reason");
      if (finish != nullptr && finish->is_string()) text += "|" + finish->as_string();
    }
  }
  return story;
}

std::string Repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text + std::to_string(i) + ", ";
  return out;
}

}  // namespace

std::vector<std::string> RequestsThatDecode() {
  return {Request("def f(", 400, R"("temperature":0)"),
          Request("def f(", 400, R"("temperature":0.9,"seed":7)"),
          Request("def f(", 400, R"("temperature":0.8,"seed":11,"n":2)")};
}

std::vector<std::string> RequestsThatPrefill() {
  return {Request(Repeated("one ", 250), 24, R"("temperature":0)"),
          Request(Repeated("two ", 100), 24, R"("temperature":0.9,"seed":7)"),
          Request(Repeated("three ", 100), 24, R"("temperature":0.8,"seed":11,"n":2)")};
}

Telling::Telling(const Cluster& cluster, const std::vector<std::string>& requests) {
  for (const std::string& request : requests) {
    clients_.push_back(std::make_unique<api::RawClient>(cluster.port, kDisturbance));
    clients_.back()->Send(api::PostJson("/v1/completions", request));
  }
}

void Telling::WaitUntilEachAnswers() {
  for (const auto& client : clients_) client->ReadUntil("data: ");
}

int Telling::num_answering() {
  return static_cast<int>(std::count_if(clients_.begin(), clients_.end(), [](const auto& client) {
    return client->Received().find("data: ") != std::string::npos;
  }));
}

int Telling::num_ended() {
  return static_cast<int>(std::count_if(clients_.begin(), clients_.end(), [](const auto& client) {
    return client->Received().find(kEnd) != std::string::npos;
  }));
}

std::vector<Story> Telling::Finish() {
  std::vector<Story> stories;
  for (const auto& client : clients_) stories.push_back(StoryOf(client->ReadUntil(kEnd)));
  return stories;
}

std::vector<Story> Tell(const Cluster& cluster, const std::function<void()>& disturb) {
  Telling telling(cluster, RequestsThatDecode());
  telling.WaitUntilEachAnswers();
  disturb();
  return telling.Finish();
}

}  // namespace polyreme::e2e
