/// Files mapped into memory, at most so many at once.
///
/// A corpus may have more files than a process may map (Linux: 65,530 maps). Files are mapped when they are read; above
/// the limit the map that wasn't used for longest, roughly, goes. Maps in use stay until their reader lets them go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "mtf/fork_guard.hpp"

namespace mtf {

/// A whole file, mapped to be read. The map ends with the object.
class MappedFile {
 public:
  /// Throws: FileError if the file can't be opened or mapped, or has fewer than `min_bytes` bytes.
  MappedFile(const std::string& path, std::uint64_t min_bytes);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

/// Thread safety: all methods. A forked child maps files for each use, because a thread that it doesn't have may have
/// held the lock.
class MapCache {
 public:
  struct File {
    std::string path;
    std::uint64_t num_bytes = 0;  ///< when the corpus was opened; a file that has fewer now is an error
  };

  /// Throws: ConfigError if max_open is 0.
  MapCache(std::vector<File> files, std::size_t max_open);

  [[nodiscard]] std::size_t num_files() const noexcept { return files_.size(); }

  /// The map of a file, made now if there is none. Throws: FileError as MappedFile does.
  /// Complexity: O(1), tens of ns if it is mapped, else some us and, now and then, the end of another map.
  [[nodiscard]] std::shared_ptr<const MappedFile> map(std::size_t file) const;

  /// Files that the cache holds mapped.
  [[nodiscard]] std::size_t num_open() const;

 private:
  struct Entry {
    std::shared_ptr<const MappedFile> map;
    bool was_used = false;
  };

  /// Makes room for one more: a file used since the hand last passed is spared once. Requires the lock.
  [[nodiscard]] std::shared_ptr<const MappedFile> evict() const;

  const std::vector<File> files_;
  const std::size_t max_open_;
  const ForkGuard guard_;
  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;
  mutable std::vector<std::size_t> open_;  // files that are mapped, in a circle
  mutable std::size_t hand_ = 0;
};

}  // namespace mtf
