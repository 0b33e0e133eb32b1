// Batches of rows of four arrays, copied row by row into memory that is there already: what is left of delivery when
// nothing is allocated, waited for or handed to Python.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "harness.hpp"
#include "mtf/random/key.hpp"
#include "mtf/random/permutation.hpp"

namespace {

struct Rows {
  const char* name;
  std::size_t row_bytes;
  std::size_t num_rows;
  std::size_t batch_size;
};

void bench(const Rows& rows) {
  constexpr std::size_t kNumArrays = 4;
  std::vector<std::vector<char>> arrays(kNumArrays, std::vector<char>(rows.num_rows * rows.row_bytes, 1));
  std::vector<mtf::Permutation> orders;
  for (std::size_t i = 0; i < kNumArrays; ++i) {
    orders.emplace_back(rows.num_rows, mtf::Key{i});
  }
  std::vector<char> batch(rows.batch_size * rows.row_bytes);
  std::vector<std::int64_t> indices(rows.batch_size);
  const std::size_t num_batches = rows.num_rows / rows.batch_size;
  std::size_t turn = 0;
  mtf::bench::measure(("rows of " + std::string(rows.name)).c_str(), kNumArrays, [&] {
    for (std::size_t i = 0; i < kNumArrays; ++i) {
      orders[i].fill(turn % num_batches * rows.batch_size, indices);
      for (std::size_t row = 0; row < rows.batch_size; ++row) {
        std::memcpy(batch.data() + row * rows.row_bytes,
                    arrays[i].data() + static_cast<std::size_t>(indices[row]) * rows.row_bytes, rows.row_bytes);
      }
      mtf::bench::keep(batch.data());
    }
    ++turn;
  });
}

}  // namespace

int main() {
  for (const Rows& rows :
       {Rows{"64 B", 64, 100'000, 256}, Rows{"1 KiB", 1024, 20'000, 256}, Rows{"150 KiB", 153'600, 400, 32}}) {
    bench(rows);
  }
}
