// Mistakes that are planted on purpose, to see that the simulator finds them.
#pragma once

#include <array>
#include <cstdint>

namespace polyreme::sim {

enum class Plant : uint8_t {
  kNone,
  // In the cache.
  kSwapsTwoBlocks,      // of a plan's block lists
  kGivesABlockTwice,    // another block's id in place of one
  kSkipsAWrite,         // the last position of a prompt chunk is never written
  kOneShardSkipsAStep,  // its cache lacks what its peers have
  kWipesClosedSlots,    // as if nobody shared their blocks
  kRowsReadBeforeOthersWrite,
  // In the samples.
  kFeedsBackAnotherSample,
  kForgetsOutputCounts,  // when a slot is opened with output
  kForgetsTheChoice,     // in the noise's key
  kNoisesByStep,         // instead of by position
  kSwapsTwoSamples,      // of a result
  kChangesAToken,        // of a result, but not of what is fed back
  // In the link.
  kRestampsOldResults,  // of an epoch that is over
  kRepeatsAResult,      // as the answer to the next step
  kAnswersForTheDead,   // an empty answer for a rank that is lost
  kKeepsOldSlots,       // in the next epoch
  kForgetsKnownEpochs,  // when a coordinator takes over
  kTakesAnyTicket,      // of a dead process whose stream comes late
  // In the engine's driver.
  kSkipsRewind,
  kSkipsNoteLoss,
  kLosesASubmission,
  kForgetsACancel,
  kAcceptsTwice,  // one submission
  kStandsStill,   // the clock that deadlines are read from
  // In the agents.
  kNobodyWatchesForHangs,
};

struct PlantName {
  Plant plant;
  const char* name;
};
inline constexpr std::array kPlants = {
    PlantName{Plant::kSwapsTwoBlocks, "SwapsTwoBlocks"},
    PlantName{Plant::kGivesABlockTwice, "GivesABlockTwice"},
    PlantName{Plant::kSkipsAWrite, "SkipsAWrite"},
    PlantName{Plant::kOneShardSkipsAStep, "OneShardSkipsAStep"},
    PlantName{Plant::kWipesClosedSlots, "WipesClosedSlots"},
    PlantName{Plant::kRowsReadBeforeOthersWrite, "RowsReadBeforeOthersWrite"},
    PlantName{Plant::kFeedsBackAnotherSample, "FeedsBackAnotherSample"},
    PlantName{Plant::kForgetsOutputCounts, "ForgetsOutputCounts"},
    PlantName{Plant::kForgetsTheChoice, "ForgetsTheChoice"},
    PlantName{Plant::kNoisesByStep, "NoisesByStep"},
    PlantName{Plant::kSwapsTwoSamples, "SwapsTwoSamples"},
    PlantName{Plant::kChangesAToken, "ChangesAToken"},
    PlantName{Plant::kRestampsOldResults, "RestampsOldResults"},
    PlantName{Plant::kRepeatsAResult, "RepeatsAResult"},
    PlantName{Plant::kAnswersForTheDead, "AnswersForTheDead"},
    PlantName{Plant::kKeepsOldSlots, "KeepsOldSlots"},
    PlantName{Plant::kForgetsKnownEpochs, "ForgetsKnownEpochs"},
    PlantName{Plant::kTakesAnyTicket, "TakesAnyTicket"},
    PlantName{Plant::kSkipsRewind, "SkipsRewind"},
    PlantName{Plant::kSkipsNoteLoss, "SkipsNoteLoss"},
    PlantName{Plant::kLosesASubmission, "LosesASubmission"},
    PlantName{Plant::kForgetsACancel, "ForgetsACancel"},
    PlantName{Plant::kAcceptsTwice, "AcceptsTwice"},
    PlantName{Plant::kStandsStill, "StandsStill"},
    PlantName{Plant::kNobodyWatchesForHangs, "NobodyWatchesForHangs"},
};

}  // namespace polyreme::sim
