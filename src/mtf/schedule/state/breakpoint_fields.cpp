#include "mtf/schedule/state/breakpoint_fields.hpp"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "mtf/message.hpp"
#include "mtf/schedule/state/fields.hpp"

namespace mtf {

namespace {

// Signed numbers as natural ones: 0, -1, 1, -2, 2 ... are 0, 1, 2, 3, 4 ...
std::uint64_t zigzag(std::int64_t value) {
  return (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63);
}
std::int64_t unzigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

}  // namespace

Value to_value(const Breakpoint& breakpoint, SpecTable& specs) {
  const auto each = [&](auto get) { return list_of(breakpoint.sources, get); };
  ValueMap fields{{"step", breakpoint.step},
                  {"origin", breakpoint.origin},
                  {"ended", breakpoint.ended},
                  {"setup", specs.index_of(*breakpoint.spec)},
                  {"pass", each([](const SourceState& s) { return s.position.pass; })},
                  {"batch", each([](const SourceState& s) { return s.position.batch; })},
                  {"count", each([](const SourceState& s) { return s.count; })},
                  {"origin_count", each([](const SourceState& s) { return s.origin_count; })},
                  {"limit", each([](const SourceState& s) { return unbounded_or(s.limit); })},
                  {"round_count", each([](const SourceState& s) { return unbounded_or(s.round_count); })},
                  {"spent", each([](const SourceState& s) { return s.exhausted; })}};
  if (breakpoint.carries) {
    fields.emplace_back("continues", breakpoint.continues);
    fields.emplace_back("num_in_block", std::uint64_t{breakpoint.num_in_block});
    fields.emplace_back("deficit", each([](const SourceState& s) { return zigzag(s.deficit); }));
  }
  return fields;
}

void check_sum(const Field& field, const std::vector<std::uint64_t>& counts, std::uint64_t step) {
  const std::uint64_t sum = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}, add_steps);
  if (sum != step) {
    field.fail(format_message("draws that add up to the step ({})", step));
  }
}

Breakpoint read_breakpoint(const Field& field, const Specs& specs, std::uint32_t version) {
  Breakpoint breakpoint;
  breakpoint.step = field["step"].integer(kMaxCount);
  breakpoint.origin = field["origin"].integer(breakpoint.step);
  breakpoint.ended = field["ended"].boolean();
  breakpoint.spec = read_spec_index(field["setup"], specs);
  const std::size_t num_sources = breakpoint.spec->sources.size();
  breakpoint.sources.resize(num_sources);
  const auto each = [&](std::string_view name, auto set) {
    const Field column = field[name];
    const std::vector<Field> items = column.list();
    if (items.size() != num_sources) {
      column.fail(format_message("a list of {}, one per source", num_sources));
    }
    for (std::size_t i = 0; i < num_sources; ++i) {
      set(i, items[i]);
    }
  };
  std::vector<std::uint64_t> counts(num_sources);
  std::vector<std::uint64_t> origin_counts(num_sources);
  each("pass", [&](std::size_t i, const Field& f) { breakpoint.sources[i].position.pass = f.integer(kMaxCount); });
  each("batch", [&](std::size_t i, const Field& f) {
    breakpoint.sources[i].position.batch = f.integer(std::min(kMaxCount, breakpoint.spec->sources[i].pass_limit()));
  });
  each("count",
       [&](std::size_t i, const Field& f) { counts[i] = breakpoint.sources[i].count = f.integer(breakpoint.step); });
  each("origin_count", [&](std::size_t i, const Field& f) {
    origin_counts[i] = breakpoint.sources[i].origin_count = f.integer(breakpoint.sources[i].count);
  });
  each("limit", [&](std::size_t i, const Field& f) { breakpoint.sources[i].limit = unbounded_or(f); });
  each("round_count", [&](std::size_t i, const Field& f) { breakpoint.sources[i].round_count = known_or_none(f); });
  each("spent", [&](std::size_t i, const Field& f) { breakpoint.sources[i].exhausted = f.boolean(); });
  breakpoint.carries = version >= 2;
  if (breakpoint.carries) {
    breakpoint.continues = field["continues"].boolean();
    breakpoint.num_in_block = static_cast<std::uint32_t>(field["num_in_block"].integer(ShuffledBlocks::kBlockSize - 1));
    each("deficit", [&](std::size_t i, const Field& f) {
      breakpoint.sources[i].deficit = unzigzag(f.integer(zigzag(kMaxDeficit)));
    });
  }
  check_sum(field["count"], counts, breakpoint.step);
  check_sum(field["origin_count"], origin_counts, breakpoint.origin);
  return breakpoint;
}

}  // namespace mtf
