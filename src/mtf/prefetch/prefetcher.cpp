#include "mtf/prefetch/prefetcher.hpp"

#include <utility>

#include "mtf/error.hpp"
#include "mtf/prefetch/engine.hpp"

namespace mtf {

Prefetcher::Prefetcher(std::vector<std::shared_ptr<NativeSource>> sources, PrefetchOptions options)
    : engine_(std::make_shared<PrefetchEngine>(options)) {
  for (auto& source : sources) {
    engine_->add_source(std::move(source));
  }
}

Prefetcher::~Prefetcher() {
  if (guard_.inherited()) {
    new std::shared_ptr<PrefetchEngine>(
        std::move(engine_));  // its threads aren't here and its locks may be held for ever
    return;
  }
  close(engine_->is_closed() ? std::chrono::nanoseconds{0} : kGrace);  // the first close has waited
}

PrefetchEngine& Prefetcher::engine() const {
  if (guard_.inherited()) {
    throw Closed("prefetcher: it belongs to the parent process; make a new one after the fork");
  }
  return *engine_;
}

std::size_t Prefetcher::add_source(std::shared_ptr<NativeSource> source) {
  return engine().add_source(std::move(source));
}

void Prefetcher::request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
                         std::span<const std::int64_t> batches) {
  engine().request(sources, passes, batches);
}

std::unique_ptr<Payload> Prefetcher::take(std::size_t source, std::chrono::nanoseconds max_wait) {
  return engine().take(source, max_wait);
}

std::unique_ptr<Payload> Prefetcher::take_ready(std::size_t source) { return engine().take_ready(source); }

std::size_t Prefetcher::discard(std::size_t source) { return engine().discard(source); }

void Prefetcher::reset() { engine().reset(); }

PrefetchStats Prefetcher::stats() const { return engine().stats(); }

bool Prefetcher::close(std::chrono::nanoseconds max_wait) noexcept {
  return guard_.inherited() || engine_->close(max_wait);
}

}  // namespace mtf
