#include "mtf/state/codec.hpp"

#include <array>
#include <bit>
#include <set>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

constexpr std::string_view kMagic = "MTFS";
constexpr std::size_t kHeaderBytes = 20;
constexpr std::size_t kChecksumBytes = 4;

enum class Tag : unsigned char { none = 0, no = 1, yes = 2, integer = 3, number = 4, string = 5, list = 6, map = 7 };

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    }
    table[i] = crc;
  }
  return table;
}

constexpr auto kCrcTable = make_crc_table();

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  void fixed(std::uint64_t value, int num_bytes) {
    for (int i = 0; i < num_bytes; ++i) {
      out_.push_back(static_cast<char>((value >> (8 * i)) & 0xFF));
    }
  }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      out_.push_back(static_cast<char>((value & 0x7F) | 0x80));
    }
    out_.push_back(static_cast<char>(value));
  }
  void text(std::string_view value) {
    varint(value.size());
    out_.append(value);
  }

  void operator()(std::monostate) { tag(Tag::none); }
  void operator()(bool value) { tag(value ? Tag::yes : Tag::no); }
  void operator()(std::uint64_t value) {
    tag(Tag::integer);
    varint(value);
  }
  void operator()(double value) {
    tag(Tag::number);
    fixed(std::bit_cast<std::uint64_t>(value), 8);
  }
  void operator()(const std::string& value) {
    tag(Tag::string);
    text(value);
  }
  void operator()(const ValueList& items) {
    tag(Tag::list);
    varint(items.size());
    for (const Value& item : items) {
      std::visit(*this, item.data());
    }
  }
  void operator()(const ValueMap& fields) {
    tag(Tag::map);
    varint(fields.size());
    for (const auto& [name, value] : fields) {
      text(name);
      std::visit(*this, value.data());
    }
  }

 private:
  void tag(Tag value) { out_.push_back(static_cast<char>(value)); }
  std::string& out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] std::uint64_t fixed(int num_bytes) {
    std::uint64_t value = 0;
    for (int i = 0; i < num_bytes; ++i) {
      value |= std::uint64_t{byte()} << (8 * i);
    }
    return value;
  }
  [[nodiscard]] std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const std::uint64_t next = byte();
      if (shift == 63 && next > 1) {
        fail("an integer beyond 64 bits");
      }
      value |= (next & 0x7F) << shift;
      if (next < 0x80) {
        return value;
      }
    }
    fail("an integer beyond 64 bits");
  }
  /// A count of things that take at least `bytes_each` bytes each.
  [[nodiscard]] std::size_t count(std::size_t bytes_each) {
    const std::uint64_t value = varint();
    // guard: counts in a state
    if (value > left() / bytes_each) {
      fail(format_message("a count of {} that the bytes left cannot hold", value));
    }
    return static_cast<std::size_t>(value);
  }
  [[nodiscard]] std::string text() {
    const std::size_t size = count(1);
    std::string value(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return value;
  }
  [[nodiscard]] Value value(int depth = 0) {
    if (depth > kMaxDepth) {
      fail(format_message("nesting deeper than {}", kMaxDepth));
    }
    switch (static_cast<Tag>(byte())) {
      case Tag::none:
        return {};
      case Tag::no:
        return false;
      case Tag::yes:
        return true;
      case Tag::integer:
        return varint();
      case Tag::number:
        return std::bit_cast<double>(fixed(8));
      case Tag::string:
        return text();
      case Tag::list: {
        // Memory grows with the bytes that are really there, whatever the count says.
        const std::size_t size = count(1);
        ValueList items;
        for (std::size_t i = 0; i < size; ++i) {
          items.push_back(value(depth + 1));
        }
        return items;
      }
      case Tag::map: {
        const std::size_t size = count(2);
        ValueMap fields;
        std::set<std::string> names;
        for (std::size_t i = 0; i < size; ++i) {
          std::string name = text();
          if (!names.insert(name).second) {
            fail(format_message("the field '{}' twice", name));
          }
          fields.emplace_back(std::move(name), value(depth + 1));
        }
        return fields;
      }
    }
    --at_;
    fail("an unknown tag");
  }
  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size() - at_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw StateMismatch(format_message("state bytes are damaged: {} at payload byte {}", what, at_));
  }

 private:
  [[nodiscard]] unsigned char byte() {
    if (at_ == bytes_.size()) {
      fail("the end came too early");
    }
    return static_cast<unsigned char>(bytes_[at_++]);
  }
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = ~0u;
  for (const std::byte byte : bytes) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<std::uint32_t>(byte)) & 0xFF];
  }
  return ~crc;
}

std::string encode(std::string_view kind, std::uint32_t version, const Value& value) {
  std::string payload;
  std::visit(Writer(payload), value.data());
  std::string out;
  out.reserve(kHeaderBytes + payload.size() + kChecksumBytes);
  Writer writer(out);
  out.append(kMagic).append(kind);
  writer.fixed(version, 4);
  writer.fixed(payload.size(), 8);
  out.append(payload);
  writer.fixed(crc32c(std::as_bytes(std::span(out))), 4);
  return out;
}

Decoded decode(std::string_view kind, std::uint32_t newest, std::span<const std::byte> bytes) {
  const auto text_at = [&](std::size_t begin) {
    return std::string(reinterpret_cast<const char*>(bytes.data()) + begin, 4);
  };
  if (bytes.size() < kHeaderBytes + kChecksumBytes) {
    throw StateMismatch(format_message("state bytes are damaged: {} bytes are fewer than a header", bytes.size()));
  }
  if (text_at(0) != kMagic) {
    throw StateMismatch("these bytes are no mtf state: they do not begin with 'MTFS'");
  }
  if (text_at(4) != kind) {
    throw StateMismatch(format_message("these bytes hold another kind of state than '{}'", kind));
  }
  Reader header(bytes.subspan(8, 12));
  const auto version = static_cast<std::uint32_t>(header.fixed(4));
  const std::uint64_t size = header.fixed(8);
  if (size != bytes.size() - kHeaderBytes - kChecksumBytes) {
    throw StateMismatch(format_message("state bytes are damaged: the header promises {} bytes of payload, there are {}",
                                       size, bytes.size() - kHeaderBytes - kChecksumBytes));
  }
  const std::span<const std::byte> summed = bytes.first(bytes.size() - kChecksumBytes);
  // guard: checksum of a state
  if (Reader(bytes.last(kChecksumBytes)).fixed(4) != crc32c(summed)) {
    throw StateMismatch("state bytes are damaged: the CRC-32C does not match");
  }
  if (version == 0 || version > newest) {
    throw StateMismatch(format_message("the state has format version {}, this mtf reads 1 to {}; a newer mtf wrote it",
                                       version, newest));
  }
  Reader reader(summed.subspan(kHeaderBytes));
  Decoded decoded{version, reader.value()};
  if (reader.left() != 0) {
    reader.fail(format_message("{} bytes left over", reader.left()));
  }
  return decoded;
}

}  // namespace mtf
