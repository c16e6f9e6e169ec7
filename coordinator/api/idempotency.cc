#include "coordinator/api/idempotency.h"

#include <openssl/sha.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "coordinator/api/api_error.h"
#include "coordinator/api/kept_answer.h"
#include "coordinator/api/openai_json.h"
#include "coordinator/engine/metrics.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

constexpr std::string_view kHeader = "idempotency-key";

std::string Sha256(std::string_view bytes) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

absl::Status WrongKey(std::string_view expected, std::string_view value) {
  return InvalidArgument("Idempotency-Key: expected {}, got '{:.100}'", expected, value);
}

absl::StatusOr<std::string> KeyOf(const HttpRequest& request) {
  const auto is_key = [](const HttpHeader& header) { return header.name == kHeader; };
  if (std::count_if(request.headers.begin(), request.headers.end(), is_key) > 1) {
    return InvalidArgument("Idempotency-Key: expected one such header, got several");
  }
  return ParseIdempotencyKey(*request.Header(kHeader));
}

std::string IdOf(const HttpRequest& request, std::string_view key) {
  const std::string* authorization = request.Header("authorization");
  return IdOfKey(authorization == nullptr ? "" : *authorization, key);
}

KeyedRequest Keyed(const HttpRequest& request, std::string_view key) {
  return {.id = IdOf(request, key),
          .fingerprint = FingerprintOf(request.path, request.query, request.body),
          .overflow =
              ServerSentEvent(Json::MakeObject({{"error", ErrorJson(AnswerTooLargeToKeep())}})) +
              std::string(kLastEvent)};
}

HttpResponse Refusal(const absl::Status& why) {
  switch (why.code()) {
    case absl::StatusCode::kAlreadyExists:
      return ErrorResponse(422, Message(why));
    case absl::StatusCode::kFailedPrecondition:
      return ErrorResponse(409, Message(why));
    default:
      return ErrorResponse(why);
  }
}

}  // namespace

std::string IdOfKey(std::string_view authorization, std::string_view key) {
  return Sha256(authorization).append(key);
}

absl::Status AnswerTooLargeToKeep() {
  return ResourceExhausted("this answer is larger than what is kept for an Idempotency-Key");
}

std::string FingerprintOf(std::string_view path, std::string_view query, std::string_view body) {
  return Sha256(Sha256(path) + Sha256(query) + Sha256(body));
}

absl::StatusOr<std::string> ParseIdempotencyKey(std::string_view value) {
  std::string key;
  if (value.starts_with('"')) {
    size_t i = 1;
    for (; i < value.size() && value[i] != '"'; ++i) {
      if (value[i] == '\\' && ++i < value.size() && value[i] != '"' && value[i] != '\\') {
        return WrongKey("only \\\" and \\\\ escaped", value);
      }
      if (i < value.size()) key += value[i];
    }
    if (i + 1 != value.size()) return WrongKey("one quoted string", value);
  } else {
    key = value;
  }
  if (key.empty() || std::ssize(key) > limits::kMaxIdempotencyKeyBytes) {
    return InvalidArgument("Idempotency-Key: expected 1 to {} characters, got {}",
                           limits::kMaxIdempotencyKeyBytes, key.size());
  }
  for (const char c : key) {
    if (c < ' ' || c > '~') return WrongKey("visible ASCII characters", "something else");
  }
  return key;
}

// Answers call back into it: it lives as long as the last of them.
class IdempotencyStore::Impl : public std::enable_shared_from_this<IdempotencyStore::Impl> {
 public:
  Impl(const IdempotencyOptions& options, const Clock& clock, engine::Metrics& metrics)
      : options_(options), clock_(clock), metrics_(metrics) {}

  absl::StatusOr<std::shared_ptr<HttpResponder>> Admit(const KeyedRequest& request,
                                                       std::shared_ptr<HttpResponder> client);
  bool Knows(const std::string& id);
  absl::StatusOr<bool> Rejoin(const KeyedRequest& request,
                              const std::shared_ptr<HttpResponder>& client);
  void Close();

 private:
  struct Entry {
    uint64_t number = 0;  // tells an entry from a later one of the same key
    std::string fingerprint;
    std::shared_ptr<KeptAnswer> answer;  // nullptr: it was too large
    int64_t num_bytes = 0;
    bool has_ended = false;
    absl::Time ended_at;
  };

  std::shared_ptr<KeptAnswer> Make(const KeyedRequest& request, uint64_t number,
                                   const std::shared_ptr<HttpResponder>& host);
  bool Reserve(const std::string& id, uint64_t number, int64_t num_bytes);
  void OnEnd(const std::string& id, uint64_t number, KeptAnswer::End end);
  std::vector<std::shared_ptr<KeptAnswer>> Running();

  // All with mutex_ held.
  // nullptr: the key has not come before.
  absl::StatusOr<std::shared_ptr<KeptAnswer>> Recall(const KeyedRequest& request);
  Entry* Find(const std::string& id, uint64_t number);
  void Drop(const std::string& id);
  void DropExpired();
  bool DropOldest();

  const IdempotencyOptions options_;
  const Clock& clock_;
  engine::Metrics& metrics_;
  std::mutex mutex_;
  std::unordered_map<std::string, Entry>
      entries_;                   // guarded by mutex_, and so on; by scope and key
  std::list<std::string> ended_;  // ids in the order of their end
  uint64_t num_made_ = 0;
  int64_t num_bytes_ = 0;
};

absl::StatusOr<std::shared_ptr<KeptAnswer>> IdempotencyStore::Impl::Recall(
    const KeyedRequest& request) {
  DropExpired();
  const auto found = entries_.find(request.id);
  if (found == entries_.end()) return nullptr;
  const Entry& entry = found->second;
  if (entry.fingerprint != request.fingerprint) {
    metrics_.KeyedRequest("conflict");
    return AlreadyExists(
        "Idempotency-Key: this key came with another request before; give each request a key of "
        "its own");
  }
  if (entry.answer == nullptr) {
    metrics_.KeyedRequest("conflict");
    return FailedPrecondition(
        "Idempotency-Key: the answer under this key was larger than what is kept ({} bytes at "
        "most, {} of all); another key runs it again",
        options_.max_answer_bytes, options_.max_bytes);
  }
  metrics_.KeyedRequest(entry.has_ended ? "replayed" : "joined");
  return entry.answer;
}

bool IdempotencyStore::Impl::Knows(const std::string& id) {
  const std::lock_guard lock(mutex_);
  DropExpired();
  return entries_.contains(id);
}

absl::StatusOr<bool> IdempotencyStore::Impl::Rejoin(const KeyedRequest& request,
                                                    const std::shared_ptr<HttpResponder>& client) {
  std::shared_ptr<KeptAnswer> answer;
  {
    const std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(answer, Recall(request));
  }
  if (answer == nullptr) return false;
  if (!WithinMemory([&] { answer->Follow(client, KeptAnswer::Hearing::kAgain); }).ok()) {
    client->Cut();
  }
  return true;
}

absl::StatusOr<std::shared_ptr<HttpResponder>> IdempotencyStore::Impl::Admit(
    const KeyedRequest& request, std::shared_ptr<HttpResponder> client) {
  std::shared_ptr<KeptAnswer> answer;
  std::shared_ptr<HttpResponder> recorder;
  absl::Status refusal;
  {
    const std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(answer, Recall(request));
    if (answer == nullptr) {
      if (std::ssize(entries_) < options_.max_keys || DropOldest()) {
        // The entry last: whoever is in it has a recorder, whose end is the entry's end.
        const uint64_t number = ++num_made_;
        answer = Make(request, number, client);
        recorder = answer->MakeRecorder();
        std::string fingerprint = request.fingerprint;
        Entry& entry = entries_[request.id];
        entry.number = number;
        entry.fingerprint = std::move(fingerprint);
        entry.answer = answer;
        metrics_.KeyedRequest("started");
      } else {
        refusal = ResourceExhausted(
            "Idempotency-Key: {} keyed requests are running, as many as may be", entries_.size());
      }
    }
  }
  if (!refusal.ok()) {
    metrics_.RequestRefused("full");
    for (const std::shared_ptr<KeptAnswer>& running : Running()) running->CancelIfAbandoned();
    return refusal;
  }
  const KeptAnswer::Hearing hearing =
      recorder != nullptr ? KeptAnswer::Hearing::kFirst : KeptAnswer::Hearing::kAgain;
  if (WithinMemory([&] { answer->Follow(client, hearing); }).ok()) return recorder;
  if (recorder != nullptr) recorder->Cut();
  client->Cut();
  return nullptr;
}

std::shared_ptr<KeptAnswer> IdempotencyStore::Impl::Make(
    const KeyedRequest& request, uint64_t number, const std::shared_ptr<HttpResponder>& host) {
  const std::string& id = request.id;
  const std::shared_ptr<Impl> self = shared_from_this();
  KeptAnswer::Keeper keeper;
  keeper.reserve = [self, id, number](int64_t num_bytes) {
    return self->Reserve(id, number, num_bytes);
  };
  keeper.on_end = [self, id, number](KeptAnswer::End end) { self->OnEnd(id, number, end); };
  keeper.overflow = request.overflow;
  return std::make_shared<KeptAnswer>(host, std::move(keeper), clock_, options_.ttl);
}

IdempotencyStore::Impl::Entry* IdempotencyStore::Impl::Find(const std::string& id,
                                                            uint64_t number) {
  const auto found = entries_.find(id);
  return found == entries_.end() || found->second.number != number ? nullptr : &found->second;
}

// Bytes of an answer that was dropped stay with the connections that still read it, which have
// bounds of their own.
bool IdempotencyStore::Impl::Reserve(const std::string& id, uint64_t number, int64_t num_bytes) {
  const std::lock_guard lock(mutex_);
  Entry* entry = Find(id, number);
  if (entry == nullptr || entry->num_bytes + num_bytes > options_.max_answer_bytes) return false;
  while (num_bytes_ + num_bytes > options_.max_bytes) {
    if (!DropOldest()) return false;
  }
  entry->num_bytes += num_bytes;
  num_bytes_ += num_bytes;
  return true;
}

void IdempotencyStore::Impl::OnEnd(const std::string& id, uint64_t number, KeptAnswer::End end) {
  const std::lock_guard lock(mutex_);
  Entry* entry = Find(id, number);
  if (entry == nullptr || entry->has_ended) return;
  if (end == KeptAnswer::End::kNothing) return Drop(id);
  ended_.push_back(id);
  if (end == KeptAnswer::End::kTooLarge) {
    entry->answer = nullptr;
    num_bytes_ -= std::exchange(entry->num_bytes, 0);
  }
  entry->has_ended = true;
  entry->ended_at = clock_.Now();
}

void IdempotencyStore::Impl::Drop(const std::string& id) {
  const auto found = entries_.find(id);
  num_bytes_ -= found->second.num_bytes;
  entries_.erase(found);
}

void IdempotencyStore::Impl::DropExpired() {
  while (!ended_.empty() && clock_.Now() - entries_.at(ended_.front()).ended_at > options_.ttl) {
    DropOldest();
  }
}

bool IdempotencyStore::Impl::DropOldest() {
  if (ended_.empty()) return false;
  Drop(ended_.front());
  ended_.pop_front();
  return true;
}

std::vector<std::shared_ptr<KeptAnswer>> IdempotencyStore::Impl::Running() {
  std::vector<std::shared_ptr<KeptAnswer>> running;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) {
    if (!entry.has_ended) running.push_back(entry.answer);
  }
  return running;
}

void IdempotencyStore::Impl::Close() {
  for (const std::shared_ptr<KeptAnswer>& answer : Running()) answer->Cancel();
  const std::lock_guard lock(mutex_);
  entries_.clear();
  ended_.clear();
}

IdempotencyStore::IdempotencyStore(const IdempotencyOptions& options, const Clock& clock,
                                   engine::Metrics& metrics)
    : impl_(std::make_shared<Impl>(options, clock, metrics)) {}
IdempotencyStore::~IdempotencyStore() {
  impl_->Close();
}

absl::StatusOr<std::shared_ptr<HttpResponder>> IdempotencyStore::Admit(
    const KeyedRequest& request, std::shared_ptr<HttpResponder> client) {
  return impl_->Admit(request, std::move(client));
}

bool IdempotencyStore::Knows(const std::string& id) {
  return impl_->Knows(id);
}

absl::StatusOr<bool> IdempotencyStore::Rejoin(const KeyedRequest& request,
                                              const std::shared_ptr<HttpResponder>& client) {
  return impl_->Rejoin(request, client);
}

std::shared_ptr<HttpResponder> IdempotencyStore::Admit(const HttpRequest& request,
                                                       std::shared_ptr<HttpResponder> client) {
  if (request.Header(kHeader) == nullptr) return client;
  absl::StatusOr<std::string> key = KeyOf(request);
  if (!key.ok()) {
    client->Send(Refusal(key.status()));
    return nullptr;
  }
  absl::StatusOr<std::shared_ptr<HttpResponder>> recorder =
      impl_->Admit(Keyed(request, *key), client);
  if (recorder.ok()) return *std::move(recorder);
  client->Send(Refusal(recorder.status()));
  return nullptr;
}

bool IdempotencyStore::Rejoin(const HttpRequest& request,
                              const std::shared_ptr<HttpResponder>& client) {
  if (request.Header(kHeader) == nullptr) return false;
  const absl::StatusOr<std::string> key = KeyOf(request);
  if (!key.ok() || !Knows(IdOf(request, *key))) return false;  // Admit says what is wrong
  const absl::StatusOr<bool> joined = impl_->Rejoin(Keyed(request, *key), client);
  if (!joined.ok()) client->Send(Refusal(joined.status()));
  return !joined.ok() || *joined;
}

}  // namespace polyreme::api
