// How many tokens a sequence that runs is expected to grow by before blocks become free, as
// admission reckons.
#pragma once

#include <cstdint>

namespace polyreme::sched {

// Short while nobody is preempted, so that the cache is filled. A preemption says that somebody was
// let in too early, and doubles it; those that follow within the old horizon's steps say so of the
// same admissions, and do not. As many steps as it is long without a preemption shorten it by an
// eighth. So preemptions become rarer the longer a full cache stays full, and a short shortage is
// soon forgotten. Pure; one thread.
class GrowthHorizon {
 public:
  // 0 < least <= most, in tokens.
  GrowthHorizon(int32_t least, int32_t most);

  int32_t tokens() const { return tokens_; }
  // Steps in which every sequence may have grown by a token.
  void NoteStep();
  void NotePreemption();

 private:
  const int32_t least_;
  const int32_t most_;
  int32_t tokens_;
  int32_t quiet_steps_ = 0;  // since the last preemption or change
  int32_t deaf_steps_ = 0;   // for which preemptions do not count
};

}  // namespace polyreme::sched
