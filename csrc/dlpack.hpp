/// The part of the DLPack 0.x interface that hands a batch to torch: layouts as its specification fixes them.
#pragma once

#include <cstdint>

namespace mtf::python::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

inline constexpr Device kCpu{1, 0};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t num_dimensions;
  DataType type;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*release)(ManagedTensor* self);
};

/// Name of a capsule that nobody has taken over yet.
inline constexpr const char* kCapsuleName = "dltensor";

}  // namespace mtf::python::dlpack
