// Any bytes are either a state that reads back as it was written, or a StateMismatch; never a crash, never unbounded
// memory.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/schedule/state.hpp"
#include "mtf/state/codec.hpp"

namespace {

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

/// A frame around any payload with right sizes and checksum, so that the fuzzer gets past both.
std::string framed(std::span<const std::uint8_t> payload) {
  std::string bytes = "MTFSSCHD";
  const auto append = [&](std::uint64_t value, int num_bytes) {
    for (int i = 0; i < num_bytes; ++i) {
      bytes.push_back(static_cast<char>(value >> (8 * i)));
    }
  };
  append(mtf::kScheduleVersion, 4);
  append(payload.size(), 8);
  bytes.append(payload.begin(), payload.end());
  append(mtf::crc32c(as_bytes(bytes)), 4);
  return bytes;
}

void read(std::span<const std::byte> bytes) {
  try {
    const mtf::Decoded decoded = mtf::decode(mtf::kScheduleKind, mtf::kScheduleVersion, bytes);
    const std::string again = mtf::encode(mtf::kScheduleKind, decoded.version, decoded.value);
    const mtf::Decoded second = mtf::decode(mtf::kScheduleKind, mtf::kScheduleVersion, as_bytes(again));
    // Compared as bytes: a NaN differs from itself.
    if (mtf::encode(mtf::kScheduleKind, second.version, second.value) != again) {
      std::abort();
    }
    auto schedule = mtf::Schedule::from_state(mtf::schedule_state_from(decoded.value, decoded.version));
    std::array<std::int32_t, 32> sources{};
    std::array<std::int64_t, 32> passes{};
    std::array<std::int64_t, 32> batches{};
    if (schedule.spec().sources.size() < 1000) {
      static_cast<void>(schedule.draws(sources, passes, batches));
    }
  } catch (const mtf::StateMismatch&) {
    return;
  } catch (const mtf::ConfigError&) {
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(std::as_bytes(std::span(data, size)));
  read(as_bytes(framed(std::span(data, size))));
  return 0;
}
