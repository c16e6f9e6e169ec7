// The chat template is found wherever a checkpoint keeps it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "coordinator/text/chat_template.h"

namespace polyreme::text {
namespace {

using ::testing::HasSubstr;

class ChatTemplateFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, std::string_view text) {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }

  // What the template in the folder prints, or "none", or the error.
  std::string Print(const Json* tools = nullptr) {
    const auto chat = ChatTemplate::Load(folder_.string());
    if (!chat.ok()) return Message(chat.status());
    if (!chat->has_value()) return "none";
    ChatTemplate::Options options;
    options.tools = tools;
    const auto rendered = (*chat)->Render(Json::MakeArray(), options);
    return rendered.ok() ? rendered->Concat() : Message(rendered.status());
  }

  std::filesystem::path folder_;
};

TEST_F(ChatTemplateFiles, NoneIsNoError) {
  EXPECT_EQ(Print(), "none");
  Write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_EQ(Print(), "none");
}

TEST_F(ChatTemplateFiles, ConfigHoldsTemplateAndTokens) {
  Write("tokenizer_config.json",
        R"({"chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
                                     "bos_token": "<s>", "eos_token": {"content": "</s>"},
                                     "pad_token": null})");
  EXPECT_EQ(Print(), "<s></s>");
  Write("special_tokens_map.json", R"({"pad_token": "<pad>", "bos_token": "other"})");
  EXPECT_EQ(Print(), "<s></s><pad>");
}

TEST_F(ChatTemplateFiles, ConfigMayNameSeveral) {
  const Json tools = *Json::Parse("[{}]");
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "default", "template": "plain"},
                              {"name": "rag", "template": "documents"},
                              {"name": "tool_use", "template": "tools"}]})");
  EXPECT_EQ(Print(), "plain");
  EXPECT_EQ(Print(&tools), "tools");
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_THAT(Print(), HasSubstr("'default'"));
  Write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_THAT(Print(), HasSubstr("an integer"));
}

TEST_F(ChatTemplateFiles, TheFileOfItsOwnComesFirst) {
  const Json tools = *Json::Parse("[{}]");
  Write("tokenizer_config.json", R"({"chat_template": "config", "eos_token": "</s>"})");
  Write("chat_template.json", R"({"chat_template": "processor"})");
  EXPECT_EQ(Print(), "processor");
  Write("chat_template.jinja", "own {{ eos_token }}\n");
  EXPECT_EQ(Print(&tools), "own </s>");
  Write("additional_chat_templates/tool_use.jinja", "tools");
  EXPECT_EQ(Print(&tools), "tools");
  EXPECT_EQ(Print(), "own </s>");
}

TEST_F(ChatTemplateFiles, OperatorsMayBringTheirOwn) {
  Write("tokenizer_config.json", R"({"chat_template": "config", "eos_token": "</s>"})");
  Write("mine.jinja", "mine {{ eos_token }}");
  const auto chat = ChatTemplate::LoadFrom((folder_ / "mine.jinja").string(), folder_.string());
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->Render(Json::MakeArray(), {})->Concat(), "mine </s>");
  const auto missing = ChatTemplate::LoadFrom((folder_ / "no.jinja").string(), folder_.string());
  EXPECT_THAT(Message(missing.status()), HasSubstr("no.jinja"));
}

TEST_F(ChatTemplateFiles, BrokenFilesAreNamed) {
  Write("tokenizer_config.json", "{");
  EXPECT_THAT(Print(), HasSubstr("tokenizer_config.json"));
  Write("tokenizer_config.json", "[]");
  EXPECT_THAT(Print(), HasSubstr("expected an object"));
  Write("tokenizer_config.json", R"({"chat_template": "{% if %}"})");
  EXPECT_THAT(Print(), HasSubstr("line 1"));
}

}  // namespace
}  // namespace polyreme::text
