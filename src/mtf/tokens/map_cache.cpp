#include "mtf/tokens/map_cache.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "mtf/error.hpp"

namespace mtf {

namespace {

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (value_ < 0) {
      throw FileError(path + ": can't be opened: " + std::generic_category().message(errno));
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(value_); }

  [[nodiscard]] int value() const noexcept { return value_; }

 private:
  int value_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path, std::uint64_t min_bytes) {
  const Descriptor file(path);
  struct stat status{};
  if (::fstat(file.value(), &status) != 0) {
    throw FileError(path + ": can't be read: " + std::generic_category().message(errno));
  }
  num_bytes_ = static_cast<std::size_t>(status.st_size);
  if (num_bytes_ < min_bytes) {
    throw FileError(path + ": has " + std::to_string(num_bytes_) + " bytes now, but had " + std::to_string(min_bytes) +
                    " when the corpus was opened; restore the file");
  }
  if (num_bytes_ == 0) {
    return;
  }
  void* const data = ::mmap(nullptr, num_bytes_, PROT_READ, MAP_SHARED, file.value(), 0);
  if (data == MAP_FAILED) {
    throw FileError(path + ": can't be mapped into memory: " + std::generic_category().message(errno));
  }
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), num_bytes_);
  }
}

MapCache::MapCache(std::vector<File> files, std::size_t max_open)
    : files_(std::move(files)), max_open_(max_open), entries_(files_.size()) {
  if (max_open == 0) {
    throw ConfigError("max_open_files: must be at least 1, but is 0");
  }
}

std::shared_ptr<const MappedFile> MapCache::evict() const {
  while (true) {
    if (hand_ >= open_.size()) {
      hand_ = 0;
    }
    Entry& entry = entries_[open_[hand_]];
    if (!entry.was_used) {
      open_[hand_] = open_.back();
      open_.pop_back();
      return std::exchange(entry.map, nullptr);
    }
    entry.was_used = false;
    ++hand_;
  }
}

std::shared_ptr<const MappedFile> MapCache::map(std::size_t file) const {
  const File& of = files_[file];
  if (guard_.inherited()) {
    return std::make_shared<const MappedFile>(of.path, of.num_bytes);
  }
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[file];
    if (entry.map) {
      entry.was_used = true;
      return entry.map;
    }
  }
  auto made = std::make_shared<const MappedFile>(of.path, of.num_bytes);
  std::shared_ptr<const MappedFile> evicted;  // unmapped after the lock is let go
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[file];
  if (entry.map) {
    return entry.map;
  }
  if (open_.size() >= max_open_) {
    evicted = evict();
  }
  open_.push_back(file);
  entry.map = std::move(made);
  entry.was_used = true;
  return entry.map;
}

std::size_t MapCache::num_open() const {
  if (guard_.inherited()) {
    return 0;
  }
  const std::lock_guard lock(mutex_);
  return open_.size();
}

}  // namespace mtf
