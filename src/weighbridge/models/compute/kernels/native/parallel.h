// OpenMP on torch's own pool of threads (the number of threads comes from torch). For sources compiled once.
#pragma once

#include <omp.h>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>

#include "seats.h"
#include "team.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIGHBRIDGE_GUARDED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define WEIGHBRIDGE_GUARDED
#endif
#ifdef WEIGHBRIDGE_GUARDED
#include <sanitizer/asan_interface.h>
#endif

namespace weighbridge {

// A fork and join costs a few microseconds: `work` is in elements touched.
constexpr int64_t smallest_parallel_work = 1 << 16;

template <class Body>
void parallel_rows(int64_t rows, int64_t work, int threads, const Body &body) {
  if (threads < 2 || rows < 2 || work < smallest_parallel_work) {
    body(int64_t(0), rows);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; part++) {
    keep_seat(omp_get_thread_num());
    body(rows * part / threads, rows * (part + 1) / threads);
  }
}

// body(team, thread) on every thread of one parallel region. The runtime may give fewer than asked for.
template <class Body>
void with_team(int threads, const Body &body) {
  std::optional<Team> team;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    keep_seat(omp_get_thread_num());
#pragma omp single
    team.emplace(omp_get_num_threads());
    body(*team, omp_get_thread_num());
  }
}

// Memory aligned to 64 bytes that only grows; keep one per calling thread.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { release(); }
  char *reserve(int64_t bytes) {
    if (bytes > size_) {
      release();
      data_ = take(bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }

  // Room for parts of these sizes, each on lines of its own. Where accesses are checked, whatever touches the end of a
  // part's last line, or what lies between two parts, is reported: one part would else run into the next unseen.
  template <size_t count>
  std::array<char *, count> parts(const int64_t (&sizes)[count]) {
    int64_t total = 0;
    for (const int64_t size : sizes) total += lines_of(size) + guard;
    char *at = reserve(total);
    std::array<char *, count> made;
    unguard(at, total);
    for (size_t i = 0; i < count; i++) {
      made[i] = at;
      at += lines_of(sizes[i]) + guard;
#ifdef WEIGHBRIDGE_GUARDED
      __asan_poison_memory_region(made[i] + sizes[i], at - made[i] - sizes[i]);
#endif
    }
    return made;
  }

 private:
#ifdef WEIGHBRIDGE_GUARDED
  static constexpr int64_t guard = 4096;
  static void unguard(char *data, int64_t bytes) { __asan_unpoison_memory_region(data, bytes); }
#else
  static constexpr int64_t guard = 0;
  static void unguard(char *, int64_t) {}
#endif
  static int64_t lines_of(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  // The heap keeps what is given back to it, and a large one that grew would be in memory twice: pages are not kept.
  static constexpr int64_t smallest_pages = 1 << 20;

#if defined(__unix__) || defined(__APPLE__)
  static char *take(int64_t bytes) {
    if (bytes < smallest_pages) return static_cast<char *>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? nullptr : static_cast<char *>(pages);
  }
  void release() {
    unguard(data_, size_);
    if (size_ < smallest_pages)
      std::free(data_);
    else
      munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }
#else
  static char *take(int64_t bytes) { return static_cast<char *>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)); }
  void release() {
    unguard(data_, size_);
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }
#endif

  char *data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace weighbridge
