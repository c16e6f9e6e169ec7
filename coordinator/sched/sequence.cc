#include "coordinator/sched/sequence.h"

#include <algorithm>
#include <utility>

#include "parallel/base/status.h"

namespace polyreme::sched {
namespace {

bool Contains(const std::vector<TokenId>& tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

}  // namespace

Sequence::Sequence(SequenceOptions options)
    : options_(std::move(options)), tokens_(std::move(options_.prompt)) {
  num_prompt_tokens_ = num_tokens();
  const int32_t room = std::max(0, options_.stop.max_model_len - num_prompt_tokens_);
  max_output_tokens_ = std::min(options_.stop.max_tokens, room);
}

int32_t Sequence::max_positions() const {
  return num_prompt_tokens_ + std::max(0, max_output_tokens_ - 1);
}

int32_t Sequence::num_to_plan() const {
  // A third step would need a token two draws away, and a drafted future is worth nothing once the
  // sequence stops.
  if (steps_in_flight_ >= 2) return 0;
  return std::min(num_known(), max_positions()) - num_planned_;
}

bool Sequence::DrawsAfter(int32_t num_tokens) const {
  return num_planned_ + num_tokens == num_known() && max_output_tokens_ > 0;
}

int32_t Sequence::num_reusable() const {
  const bool scores = options_.scores_prompt && num_scored_ + 1 < num_prompt_tokens_;
  return scores ? num_scored_ : num_tokens() - 1;
}

void Sequence::Open(SlotId slot, int32_t first_position) {
  CHECK(state_ == State::kWaiting && steps_in_flight_ == 0 && draws_in_flight_ == 0,
        "sequence {} cannot be opened", id().value);
  state_ = State::kRunning;
  slot_ = slot;
  num_planned_ = first_position;
  num_score_planned_ = 1 + num_scored_;
  if (num_cached_tokens_ < 0) num_cached_tokens_ = std::min(first_position, num_prompt_tokens_);
  // Shared blocks are known to whoever was to know them.
  num_blocks_published_ = static_cast<int32_t>(blocks_.size());
}

void Sequence::PlanRow(int32_t num_tokens, StepId step, std::optional<int32_t> draw) {
  num_planned_ += num_tokens;
  if (options_.scores_prompt) {
    const int32_t scored = std::min(num_planned_ + 1, num_prompt_tokens_);
    num_score_planned_ = std::max(num_score_planned_, scored);
  }
  ++steps_in_flight_;
  last_step_ = step;
  if (!draw.has_value()) return;
  ++draws_in_flight_;
  last_draw_ = {step, *draw};
}

void Sequence::Close(State next) {
  CHECK(blocks_.empty() && next != State::kRunning);
  state_ = next;
  slot_ = SlotId{-1};
  num_planned_ = 0;
  last_step_ = StepId{-1};
}

Finish Sequence::CommitDraw(TokenId token) {
  --draws_in_flight_;
  tokens_.push_back(token);
  if (num_output_tokens() >= options_.stop.min_tokens) {
    if (Contains(options_.stop.eos_tokens, token)) return Finish::kEndOfSequence;
    if (Contains(options_.stop.stop_tokens, token)) return Finish::kStopToken;
  }
  return num_output_tokens() >= max_output_tokens_ ? Finish::kLength : Finish::kNone;
}

void Sequence::ForgetSteps() {
  steps_in_flight_ = 0;
  draws_in_flight_ = 0;
}

void Sequence::ReleaseBlocks(BlockAllocator& allocator) {
  // The last block first, so that whoever takes them next gets them in order.
  while (!blocks_.empty()) {
    allocator.Release(blocks_.back());
    blocks_.pop_back();
  }
  num_blocks_sent_ = 0;
  num_blocks_published_ = 0;
}

const BlockKey& Sequence::KeyOf(int32_t index, const KeyMaker& keys) {
  while (std::ssize(keys_) <= index) {
    const size_t block_size = static_cast<size_t>(keys.tokens_per_block());
    const absl::Span<const TokenId> tokens =
        absl::MakeConstSpan(tokens_).subspan(keys_.size() * block_size, block_size);
    keys_.push_back(keys.Next(keys_.empty() ? keys.Root(options_.scope) : keys_.back(), tokens));
  }
  return keys_[static_cast<size_t>(index)];
}

void Sequence::PublishBlocks(const KeyMaker& keys, BlockAllocator& allocator) {
  const int32_t end = std::min(num_planned_, num_tokens());
  while ((num_blocks_published_ + 1) * keys.tokens_per_block() <= end) {
    allocator.Publish(KeyOf(num_blocks_published_, keys),
                      blocks_[static_cast<size_t>(num_blocks_published_)]);
    ++num_blocks_published_;
  }
}

absl::Span<const BlockId> Sequence::unsent_blocks() const {
  return absl::MakeConstSpan(blocks_).subspan(num_blocks_sent_);
}

void Sequence::ReserveMemory(int32_t tokens_per_block) {
  tokens_.reserve(static_cast<size_t>(num_prompt_tokens_ + max_output_tokens_));
  blocks_.reserve(static_cast<size_t>(max_positions() / tokens_per_block + 1));
  keys_.reserve(blocks_.capacity());
}

}  // namespace polyreme::sched
