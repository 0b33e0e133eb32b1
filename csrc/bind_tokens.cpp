// Token corpora, their windows and packed rows. Arrays that they read stay alive as long as they do.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/error.hpp"
#include "mtf/tokens/corpus.hpp"
#include "mtf/tokens/documents.hpp"
#include "mtf/tokens/packed_rows.hpp"
#include "mtf/tokens/token_copy.hpp"
#include "mtf/tokens/token_rows.hpp"
#include "mtf/tokens/window_rows.hpp"
#include "py_rows.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

constexpr std::array<std::string_view, 8> kTypeNames{"int8",  "uint8",  "int16", "uint16",
                                                     "int32", "uint32", "int64", "uint64"};

TokenType type_of(std::string_view name) {
  const auto found = std::ranges::find(kTypeNames, name);
  if (found == kTypeNames.end()) {
    throw ConfigError("dtype: must be an integer of 8 to 64 bits in this machine's byte order, but is '" +
                      std::string(name) + "'");
  }
  return static_cast<TokenType>(found - kTypeNames.begin());
}

/// A file and its first byte, or an array; and the number of tokens.
using Part = std::tuple<std::string, std::uint64_t, std::optional<py::array>, std::uint64_t>;

class PyTokenCorpus {
 public:
  PyTokenCorpus(const std::vector<Part>& parts, std::string_view dtype, std::size_t max_open_files) {
    std::vector<TokenPart> given;
    py::list arrays;
    for (const auto& [path, first_byte, array, num_tokens] : parts) {
      const auto* const memory = array ? static_cast<const std::byte*>(array->data()) : nullptr;
      if (array) {
        arrays.append(*array);
      }
      given.push_back({.path = path, .first_byte = first_byte, .memory = memory, .num_tokens = num_tokens});
    }
    struct Keeping {
      Keeping(OwnedObject of, std::vector<TokenPart> given_parts, TokenType type, std::size_t max_open)
          : arrays(std::move(of)), corpus(std::move(given_parts), type, max_open) {}
      OwnedObject arrays;
      TokenCorpus corpus;
    };
    auto kept =
        std::make_shared<Keeping>(OwnedObject(std::move(arrays)), std::move(given), type_of(dtype), max_open_files);
    core_ = std::shared_ptr<const TokenCorpus>(kept, &kept->corpus);
  }

  [[nodiscard]] const std::shared_ptr<const TokenCorpus>& core() const noexcept { return core_; }

 private:
  std::shared_ptr<const TokenCorpus> core_;
};

class PyDocumentIndex {
 public:
  PyDocumentIndex(py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> offsets,
                  const PyTokenCorpus& corpus) {
    struct Keeping {
      DocumentIndex index;
      OwnedObject offsets;
    };
    const std::span<const std::int64_t> view(offsets.data(), static_cast<std::size_t>(offsets.size()));
    auto kept = std::make_shared<Keeping>(
        Keeping{DocumentIndex(view, corpus.core()->num_tokens()), OwnedObject(std::move(offsets))});
    core_ = std::shared_ptr<const DocumentIndex>(kept, &kept->index);
  }

  [[nodiscard]] const std::shared_ptr<const DocumentIndex>& core() const noexcept { return core_; }

 private:
  std::shared_ptr<const DocumentIndex> core_;
};

/// A new array with the numbers of `values`; their memory becomes the array's.
py::array_t<std::int64_t> to_array(std::vector<std::int64_t> values) {
  auto owner = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  std::int64_t* const data = owner->data();
  const auto size = static_cast<py::ssize_t>(owner->size());
  py::capsule keeper(owner.get(), [](void* held) { delete static_cast<std::vector<std::int64_t>*>(held); });
  static_cast<void>(owner.release());
  return py::array_t<std::int64_t>(size, data, keeper);
}

py::array_t<std::int64_t> documents_of(const PyTokenCorpus& corpus, std::int64_t end_token) {
  std::vector<std::int64_t> offsets;
  without_gil([&] { offsets = scan_documents(*corpus.core(), end_token); });
  return to_array(std::move(offsets));
}

py::array_t<std::int64_t> read_tokens(const PyTokenCorpus& corpus, std::uint64_t begin, std::uint64_t count) {
  const TokenCorpus& core = *corpus.core();
  if (begin > core.num_tokens() || count > core.num_tokens() - begin) {
    throw py::index_error("the tokens [" + std::to_string(begin) + ", " + std::to_string(begin) + " + " +
                          std::to_string(count) + ") don't lie within [0, " + std::to_string(core.num_tokens()) + ")");
  }
  std::vector<std::int64_t> tokens(count);
  without_gil([&] {
    TokenReader reader(core);
    reader.for_runs(begin, count, [&](const TokenRun& run, std::uint64_t done) {
      widen_tokens(core.type(), run.tokens, run.count, tokens.data() + done);
    });
  });
  return to_array(std::move(tokens));
}

/// The base of the rows of a corpus.
class PyTokenRows : public PyRowSource {
 public:
  explicit PyTokenRows(std::shared_ptr<const TokenRowSource> rows) : PyRowSource(rows), rows_(std::move(rows)) {}

  [[nodiscard]] const TokenRowSource& rows() const noexcept { return *rows_; }

 private:
  std::shared_ptr<const TokenRowSource> rows_;
};

class PyWindowRows final : public PyTokenRows {
 public:
  explicit PyWindowRows(std::shared_ptr<const WindowRows> rows) : PyTokenRows(rows), windows(std::move(rows)) {}
  const std::shared_ptr<const WindowRows> windows;
};

class PyPackedRows final : public PyTokenRows {
 public:
  explicit PyPackedRows(std::shared_ptr<const PackedRows> rows) : PyTokenRows(rows), packed(std::move(rows)) {}
  const std::shared_ptr<const PackedRows> packed;
};

std::shared_ptr<PyWindowRows> make_windows(const PyTokenCorpus& corpus,
                                           const std::optional<std::shared_ptr<PyDocumentIndex>>& documents,
                                           std::uint64_t length, bool moving, bool boundaries, bool shuffle,
                                           std::optional<std::int64_t> end_token) {
  return std::make_shared<PyWindowRows>(std::make_shared<const WindowRows>(
      corpus.core(), documents ? (*documents)->core() : nullptr,
      WindowSpec{
          .length = length, .moving = moving, .boundaries = boundaries, .shuffle = shuffle, .end_token = end_token}));
}

LongDocuments long_documents_of(std::string_view name) {
  if (name == "split") {
    return LongDocuments::split;
  }
  if (name == "truncate") {
    return LongDocuments::truncate;
  }
  if (name == "drop") {
    return LongDocuments::drop;
  }
  throw ConfigError("long: must be 'split', 'truncate' or 'drop', but is '" + std::string(name) + "'");
}

std::shared_ptr<PyPackedRows> make_packed(const PyTokenCorpus& corpus, const PyDocumentIndex& documents,
                                          std::uint64_t length, std::string_view long_documents, std::int64_t pad_token,
                                          bool shuffle) {
  const PackingSpec spec{.length = length,
                         .long_documents = long_documents_of(long_documents),
                         .pad_token = pad_token,
                         .shuffle = shuffle};
  std::shared_ptr<const PackedRows> rows;
  without_gil([&] { rows = std::make_shared<const PackedRows>(corpus.core(), documents.core(), spec); });
  return std::make_shared<PyPackedRows>(std::move(rows));
}

/// Per span (first token of the corpus, number of tokens).
std::vector<std::pair<std::uint64_t, std::uint64_t>> trace(const PyTokenRows& self, std::uint64_t key,
                                                           std::uint64_t pass, std::uint64_t place) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> out;
  for (const TokenSpan& span : self.rows().trace(Key{key}, pass, place)) {
    out.emplace_back(span.begin, span.count);
  }
  return out;
}

py::typing::Dict<py::str, py::int_> packing_stats(const PyPackedRows& self) {
  const Pieces& pieces = self.packed->pieces();
  py::typing::Dict<py::str, py::int_> out;
  out["num_patterns"] = self.packed->table().num_patterns();
  out["num_tokens"] = pieces.num_tokens();
  out["num_supervised"] = pieces.num_supervised();
  out["num_documents"] = pieces.num_documents();
  out["num_long_documents"] = pieces.num_long();
  out["num_dropped_documents"] = pieces.num_dropped_documents();
  out["num_dropped_tokens"] = pieces.num_dropped_tokens();
  return out;
}

void bind_corpus(py::module_& module) {
  py::class_<PyTokenCorpus, std::shared_ptr<PyTokenCorpus>>(module, "TokenCorpus", "Files of tokens as one stream.")
      .def(py::init<const std::vector<Part>&, std::string_view, std::size_t>(), py::arg("parts"), py::arg("dtype"),
           py::arg("max_open_files"),
           "Each part is (path, first byte, None, number of tokens) or ('', 0, array, number of tokens).")
      .def_property_readonly("num_tokens", [](const PyTokenCorpus& self) { return self.core()->num_tokens(); })
      .def_property_readonly(
          "num_open_files", [](const PyTokenCorpus& self) { return self.core()->maps().num_open(); },
          "Files that are mapped now.")
      .def("scan_documents", &documents_of, py::arg("end_token"),
           "Offsets of the documents that end with a token or with a part: int64. Reads every token.")
      .def("read", &read_tokens, py::arg("begin"), py::arg("count"), "Tokens [begin, begin + count): int64.");
  py::class_<PyDocumentIndex, std::shared_ptr<PyDocumentIndex>>(module, "DocumentIndex",
                                                                "Where the documents of a corpus begin.")
      .def(py::init<py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>, const PyTokenCorpus&>(),
           py::arg("offsets"), py::arg("corpus"))
      .def_property_readonly("num_nonempty", [](const PyDocumentIndex& self) { return self.core()->num_nonempty(); })
      .def(
          "document_of",
          [](const PyDocumentIndex& self, std::uint64_t token) { return self.core()->document_of(token); },
          py::arg("token"), "The document that holds a token, which must be one of the corpus.");
}

}  // namespace

void bind_tokens(py::module_& module) {
  bind_corpus(module);
  py::class_<PyTokenRows, PyRowSource, std::shared_ptr<PyTokenRows>>(module, "TokenRows", "Rows of a token corpus.")
      .def("trace", &trace, py::arg("key"), py::arg("pass_"), py::arg("place"),
           "The row's inputs, in order: per span (first token of the corpus, number of tokens). Reads no tokens.")
      .def(
          "find",
          [](const PyTokenRows& self, std::uint64_t key, std::uint64_t pass, std::uint64_t begin, std::uint64_t end) {
            return self.rows().find(Key{key}, pass, begin, end);
          },
          py::arg("key"), py::arg("pass_"), py::arg("begin"), py::arg("end"),
          "The places of a pass that hold a token of [begin, end) as an input, sorted. Reads no tokens.");
  py::class_<PyWindowRows, PyTokenRows, std::shared_ptr<PyWindowRows>>(module, "WindowRows", "Windows of a corpus.")
      .def(py::init(&make_windows), py::arg("corpus"), py::arg("documents"), py::kw_only(), py::arg("length"),
           py::arg("moving"), py::arg("boundaries"), py::arg("shuffle"), py::arg("end_token"))
      .def(
          "offset",
          [](const PyWindowRows& self, std::uint64_t key, std::uint64_t pass) {
            return self.windows->offset(Key{key}, pass);
          },
          py::arg("key"), py::arg("pass_"), "The first token of row 0 in a pass.");
  py::class_<PyPackedRows, PyTokenRows, std::shared_ptr<PyPackedRows>>(module, "PackedRows",
                                                                       "Documents packed into rows.")
      .def(py::init(&make_packed), py::arg("corpus"), py::arg("documents"), py::kw_only(), py::arg("length"),
           py::arg("long"), py::arg("pad_token"), py::arg("shuffle"))
      .def_property_readonly("stats", &packing_stats);
}

}  // namespace mtf::python
