// The codec gives back what it was given, and refuses everything else with a reason.
#include <gtest/gtest.h>

#include <limits>
#include <span>
#include <string>

#include "mtf/error.hpp"
#include "mtf/random/key.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

Value sample() {
  return ValueMap{{"none", Value()},
                  {"yes", true},
                  {"no", false},
                  {"big", std::numeric_limits<std::uint64_t>::max()},
                  {"small", std::uint64_t{127}},
                  {"number", -0.1},
                  {"text", std::string("a\0b", 3)},
                  {"list", ValueList{std::uint64_t{0}, std::uint64_t{128}, ValueList{}}},
                  {"map", ValueMap{}}};
}

TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u);            // RFC 3720, "check" value of CRC-32C
  EXPECT_EQ(crc32c(bytes_of(std::string(32, '\0'))), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(crc32c({}), 0u);
}

TEST(Codec, GivesBackWhatItWasGiven) {
  const std::string bytes = encode("TEST", 3, sample());
  const Decoded decoded = decode("TEST", 5, bytes_of(bytes));
  EXPECT_EQ(decoded.version, 3u);
  EXPECT_TRUE(decoded.value == sample());
}

TEST(Codec, EveryFlippedBitAndEveryTruncationIsFound) {
  const std::string bytes = encode("TEST", 1, sample());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_THROW((void)decode("TEST", 1, bytes_of(bytes.substr(0, i))), StateMismatch);
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      EXPECT_THROW((void)decode("TEST", 1, bytes_of(damaged)), StateMismatch) << i << ' ' << bit;
    }
  }
  EXPECT_THROW((void)decode("TEST", 1, bytes_of(bytes + "x")), StateMismatch);
}

std::string framed(const std::string& payload) {
  std::string out = encode("TEST", 1, Value());
  out = out.substr(0, 12);
  for (int i = 0; i < 8; ++i) {
    out.push_back(static_cast<char>((payload.size() >> (8 * i)) & 0xFF));
  }
  out += payload;
  const std::uint32_t crc = crc32c(bytes_of(out));
  for (int i = 0; i < 4; ++i) {
    out.push_back(static_cast<char>((crc >> (8 * i)) & 0xFF));
  }
  return out;
}

std::string message(const std::string& bytes) {
  try {
    (void)decode("TEST", 1, bytes_of(bytes));
  } catch (const StateMismatch& error) {
    return error.what();
  }
  return "";
}

TEST(Codec, SaysWhatIsWrong) {
  const auto says = [](const std::string& bytes, const std::string& what) {
    EXPECT_NE(message(bytes).find(what), std::string::npos) << message(bytes);
  };
  const std::string bytes = encode("TEST", 1, sample());
  says("MTF", "fewer than a header");
  says("XXXX" + bytes.substr(4), "no mtf state");
  says("MTFSELSE" + bytes.substr(8), "another kind of state than 'TEST'");
  says(encode("TEST", 2, sample()), "format version 2, this mtf reads 1 to 1");
  says(bytes.substr(0, bytes.size() - 1), "the header promises");
  says(framed("\x06\xFF\xFF\xFF\xFF\x0F"), "a count of 4294967295 that the bytes left cannot hold");
  says(framed("\x05\x7Fx"), "cannot hold");
  says(framed("\x09"), "an unknown tag at payload byte 0");
  says(framed(std::string("\x03\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 11)), "beyond 64 bits");
  says(framed(std::string("\x00\x00", 2)), "1 bytes left over");
  says(framed(std::string("\x07\x02\x01\x61\x00\x01\x61\x00", 8)), "the field 'a' twice");
  std::string nested;
  for (int i = 0; i < 100; ++i) {
    nested += "\x06\x01";
  }
  says(framed(nested + std::string(1, '\0')), "nesting deeper than 32");
}

TEST(Codec, RandomPayloadsNeverCrash) {
  Stream stream(Key{7});
  for (int round = 0; round < 20000; ++round) {
    std::string payload;
    const std::uint64_t size = stream.bounded(40);
    for (std::uint64_t i = 0; i < size; ++i) {
      payload.push_back(static_cast<char>(stream.bounded(stream.bounded(2) == 0 ? 8 : 256)));
    }
    try {
      (void)decode("TEST", 1, bytes_of(framed(payload)));
    } catch (const StateMismatch&) {
      continue;
    }
  }
}

TEST(Field, NamesTheFieldAndTheRule) {
  const Value value = sample();
  const Field root(value, "state");
  EXPECT_EQ(root["small"].integer(127), 127u);
  EXPECT_EQ(root["small"].number(), 127.0);
  EXPECT_TRUE(root["yes"].boolean());
  EXPECT_TRUE(root.has("none"));
  EXPECT_FALSE(root.has("nothing"));
  EXPECT_FALSE(root["small"].has("x"));
  EXPECT_TRUE(root["none"].is_none());
  EXPECT_EQ(root["list"].list()[1].integer(200), 128u);
  const auto says = [&](auto&& call, const std::string& what) {
    try {
      call();
      FAIL() << what;
    } catch (const StateMismatch& error) {
      EXPECT_STREQ(error.what(), what.c_str());
    }
  };
  says([&] { (void)root["small"].integer(126); }, "state.small must be an integer in [0, 126], got 127");
  says([&] { (void)root["none"].boolean(); }, "state.none must be True or False, got None");
  says([&] { (void)root["list"].list()[2].string(); }, "state.list[2] must be a string, got a list of 0");
  says([&] { (void)root["no"].number(); }, "state.no must be a number, got False");
  says([&] { (void)root["map"].list(); }, "state.map must be a list, got a mapping");
  says([&] { (void)root["text"]["x"]; }, std::string("state.text must be a mapping, got 'a"));
  says([&] { (void)root["map"]["x"]; }, "state.map has no field 'x'");
}

}  // namespace
}  // namespace mtf
