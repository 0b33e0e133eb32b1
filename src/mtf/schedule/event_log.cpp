#include "mtf/schedule/event_log.hpp"

#include <algorithm>
#include <utility>

#include "mtf/random/key.hpp"
#include "mtf/schedule/state/event_fields.hpp"

namespace mtf {

bool operator==(const Event& a, const Event& b) {
  const bool same_spec = a.spec == b.spec || (a.spec && b.spec && *a.spec == *b.spec);
  return same_spec && a.step == b.step && a.kind == b.kind && a.source == b.source && a.num_batches == b.num_batches &&
         a.rests == b.rests;
}

EventLog::EventLog(std::vector<Event> events) {
  for (Event& event : events) {
    push_back(std::move(event));
  }
}

void EventLog::push_back(Event event) {
  hashes_.push_back(fold_in(Key{hash()}, hash_of(event)).value);
  events_.push_back(std::move(event));
}

std::uint64_t EventLog::count_until(std::uint64_t step) const {
  return static_cast<std::uint64_t>(std::ranges::upper_bound(events_, step, {}, &Event::step) - events_.begin());
}

EventLog EventLog::until(std::uint64_t step) const {
  EventLog log(num_dropped_, hash_dropped_);
  const auto num = static_cast<std::ptrdiff_t>(count_until(step));
  log.events_.assign(events_.begin(), events_.begin() + num);
  log.hashes_.assign(hashes_.begin(), hashes_.begin() + num);
  return log;
}

EventLog EventLog::summary_until(std::uint64_t step, std::uint64_t most) const {
  const std::uint64_t num = count_until(step);
  std::uint64_t total = 0;
  for (std::uint64_t i = 0; i < num && total <= most; ++i) {
    total += cost(events_[i]);
  }
  if (is_whole() && total <= most) {
    return until(step);
  }
  return {num_dropped_ + num, num == 0 ? hash_dropped_ : hashes_[num - 1]};
}

EventLog EventLog::first(std::uint64_t num_events) const {
  EventLog log;
  log.events_.assign(events_.begin(), events_.begin() + static_cast<std::ptrdiff_t>(num_events));
  log.hashes_.assign(hashes_.begin(), hashes_.begin() + static_cast<std::ptrdiff_t>(num_events));
  return log;
}

void EventLog::drop_all_but(std::uint64_t num_kept) {
  if (events_.size() <= num_kept) {
    return;
  }
  const auto num_gone = static_cast<std::ptrdiff_t>(events_.size() - num_kept);
  hash_dropped_ = hashes_[static_cast<std::size_t>(num_gone) - 1];
  num_dropped_ += static_cast<std::uint64_t>(num_gone);
  events_.erase(events_.begin(), events_.begin() + num_gone);
  hashes_.erase(hashes_.begin(), hashes_.begin() + num_gone);
}

}  // namespace mtf
