// What holds for any sequence of legal plans, and for any plan with one number changed.
#include <gtest/gtest.h>

#include <iterator>
#include <limits>

#include "tests/parallel/random_plans.h"

namespace polyreme::step {
namespace {

constexpr uint64_t kSeeds = 40;
constexpr int kSteps = 60;

// Values at and around every border a field could have.
template <class Int>
Int Strange(std::mt19937_64& random, Int value) {
  const Int choices[] = {static_cast<Int>(value + 1),
                         static_cast<Int>(value - 1),
                         Int{0},
                         Int{1},
                         Int{-1},
                         std::numeric_limits<Int>::max(),
                         std::numeric_limits<Int>::min(),
                         static_cast<Int>(random() % 128)};
  return choices[random() % std::size(choices)];
}

template <class T>
T* AnyOf(std::mt19937_64& random, std::vector<T>& items) {
  return items.empty() ? nullptr : &items[random() % items.size()];
}

void MutateLists(std::mt19937_64& random, StepPlan& plan) {
  if (StepRow* row = AnyOf(random, plan.rows); row != nullptr && random() % 3 == 0) {
    if (row->first_token.has_value())
      row->first_token.reset();
    else
      row->first_token = TokenSource{StepId{plan.id.value - 1}, 0};
    return;
  }
  switch (random() % 7) {
    case 0:
      if (!plan.rows.empty()) plan.rows.pop_back();
      return;
    case 1:
      if (!plan.tokens.empty()) plan.tokens.pop_back();
      return;
    case 2:
      plan.tokens.push_back(3);
      return;
    case 3:
      if (!plan.rows.empty()) plan.rows.push_back(plan.rows.front());
      return;
    case 4:
      if (!plan.samples.empty()) plan.samples.push_back(plan.samples.front());
      return;
    case 5:
      if (!plan.opened.empty()) plan.opened.push_back(plan.opened.front());
      return;
    default:
      plan.closed.push_back(SlotId{Strange(random, 0)});
      return;
  }
}

// Changes one field of a plan.
void Mutate(std::mt19937_64& random, StepPlan& plan) {
  const auto change = [&](auto& field) { field = Strange(random, field); };
  switch (random() % 8) {
    case 0:
      change(plan.id.value);
      return;
    case 1:
      change(plan.epoch.value);
      return;
    case 2:
      if (SlotOpen* o = AnyOf(random, plan.opened)) {
        switch (random() % 6) {
          case 0:
            change(o->slot.value);
            return;
          case 1:
            change(o->num_prompt_tokens);
            return;
          case 2:
            o->fork_of = SlotId{Strange(random, 0)};
            return;
          case 3:
            if (TokenId* t = AnyOf(random, o->tokens)) change(*t);
            return;
          case 4:
            if (BlockId* b = AnyOf(random, o->blocks)) change(b->value);
            return;
          default:
            change(o->sampling.num_logprobs);
            return;
        }
      }
      return;
    case 3:
      if (SlotAppend* a = AnyOf(random, plan.appended)) {
        if (random() % 2 == 0)
          change(a->slot.value);
        else
          change(a->blocks.front().value);
      }
      return;
    case 4:
      if (BlockCopy* c = AnyOf(random, plan.copies))
        change(random() % 2 == 0 ? c->from.value : c->to.value);
      return;
    case 5:
      if (StepRow* r = AnyOf(random, plan.rows)) {
        const uint64_t which = random() % 4;
        if (which == 3 && r->first_token.has_value())
          change(r->first_token->sample);
        else
          change(which == 0 ? r->slot.value : which == 1 ? r->first_position : r->num_tokens);
      }
      return;
    case 6:
      if (Sample* s = AnyOf(random, plan.samples)) {
        const uint64_t which = random() % 3;
        change(which == 0 ? s->slot.value : which == 1 ? s->token_index : s->target);
      }
      return;
    default:
      MutateLists(random, plan);
      return;
  }
}

// What every table must hold whatever plans it was given.
void ExpectSound(const SlotTable& table, const StepLimits& limits) {
  int32_t num_open = 0;
  for (int32_t i = 0; i < table.num_slots(); ++i) {
    const SlotTable::Slot& slot = table.at(SlotId{i});
    if (!slot.open) continue;
    ++num_open;
    EXPECT_LE(slot.num_positions, limits.max_model_len);
    EXPECT_GE(slot.num_positions, 0);
    EXPECT_LE(slot.num_prompt_tokens, std::ssize(slot.tokens));
    for (const BlockId block : slot.blocks) {
      EXPECT_GE(block.value, 0);
      EXPECT_LT(block.value, limits.num_blocks);
    }
  }
  EXPECT_EQ(num_open, table.num_open());
}

TEST(StepProperties, TwoTablesGivenTheSamePlansAreEqual) {
  int rows = 0;
  int fed = 0;
  int forks = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    RandomPlans plans(seed);
    SlotTable other(plans.limits());
    for (int step = 0; step < kSteps; ++step) {
      const StepPlan plan = plans.Next();
      ASSERT_TRUE(Validate(plan, other, plans.limits()).ok());
      other.Apply(plan);
      ASSERT_TRUE(other == plans.table());
      ExpectSound(other, plans.limits());
      rows += static_cast<int>(plan.rows.size());
      for (const StepRow& row : plan.rows) fed += row.first_token.has_value() ? 1 : 0;
      for (const SlotOpen& opened : plan.opened) forks += opened.fork_of.has_value() ? 1 : 0;
    }
  }
  // The generator reaches what it is meant to reach.
  EXPECT_GT(rows, 2000);
  EXPECT_GT(fed, 200);
  EXPECT_GT(forks, 20);
}

TEST(StepProperties, APlanWithOneFieldChangedIsRefusedOrHarmless) {
  int refused = 0;
  int harmless = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    RandomPlans plans(seed);
    std::mt19937_64 random(seed * 7919);
    for (int step = 0; step < kSteps; ++step) {
      const SlotTable before = plans.table();
      const StepPlan legal = plans.Next();
      for (int i = 0; i < 20; ++i) {
        StepPlan changed = legal;
        Mutate(random, changed);
        if (changed == legal) continue;
        const absl::Status status = Validate(changed, before, plans.limits());
        if (!status.ok()) {
          EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
          ++refused;
          continue;
        }
        SlotTable after = before;
        after.Apply(changed);
        ExpectSound(after, plans.limits());
        ++harmless;
      }
    }
  }
  EXPECT_GT(refused, 10000);
  EXPECT_GT(harmless, 100);
}

TEST(StepProperties, EveryTokenIsFoundInItsRow) {
  RandomPlans plans(11);
  RowFinder finder;
  for (int step = 0; step < kSteps; ++step) {
    const StepPlan plan = plans.Next();
    finder.Reset(plan);
    int32_t token = 0;
    for (size_t r = 0; r < plan.rows.size(); ++r) {
      for (int32_t i = 0; i < plan.rows[r].num_tokens; ++i, ++token) {
        ASSERT_EQ(finder.RowOf(token), static_cast<int32_t>(r));
        ASSERT_EQ(finder.PositionOf(token), plan.rows[r].first_position + i);
      }
    }
  }
}

}  // namespace
}  // namespace polyreme::step
