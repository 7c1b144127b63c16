// Tracing on a CPU: a lane a ray. A tape's instruction is decoded once for all lanes of a step, and a lane whose ray
// has ended takes the next one.
#include <torch/csrc/stable/ops.h>

#include <bit>
#include <limits>

#include "trace_lanes.h"

namespace distrender {
namespace {

constexpr int64_t kRaysWorthAThread = 512;

template <typename T>
class Lot {
 public:
  Lot(const Rays<T>& rays, const Options<T>& options, int64_t begin, int64_t end)
      : rays_(rays), options_(options), next_(begin), end_(end) {
    for (int lane = 0; lane < kLanes<T>; ++lane) enter(lane);
  }

  template <typename Field>
  void trace(const Field& field) {
    while (running_) {
      const R f = field.at(R(origin_[0] + walk_.t * direction_[0]), R(origin_[1] + walk_.t * direction_[1]),
                           R(origin_[2] + walk_.t * direction_[2]));
      for (uint32_t ended = running_ & ~bits_of(walk_.take(f, options_)); ended; ended &= ended - 1) {
        const int lane = std::countr_zero(ended);
        leave(lane);
        enter(lane);
      }
    }
  }

 private:
  using R = Lanes<T>;

  // The next ray that meets the ball begins in a lane; those before it are done at once.
  void enter(int lane) {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
    running_ &= ~(uint32_t{1} << lane);
    walk_.t[lane] = 0;
    for (int k = 0; k < 3; ++k) origin_[k][lane] = 0, direction_[k][lane] = 0;
    walk_.depth[lane] = infinity, walk_.min_sdf[lane] = infinity, walk_.queries[lane] = 0;
    walk_.last_t[lane] = walk_.last_f[lane] = walk_.out_t[lane] = walk_.out_f[lane] = nan;
    walk_.in_t[lane] = walk_.in_f[lane] = nan;
    walk_.tries[lane] = 0, walk_.hit[lane] = 0, walk_.crossed[lane] = 0;
    while (next_ < end_) {
      const int64_t ray = next_++;
      ray_[lane] = ray;
      walk_.min_depth[lane] = rays_.near[ray];
      if (rays_.start[ray] < rays_.far[ray]) {
        walk_.t[lane] = rays_.start[ray];
        walk_.expected[lane] = rays_.slope[ray];
        walk_.first[lane] = rays_.near[ray] - options_.slack;
        walk_.far[lane] = rays_.far[ray];
        for (int k = 0; k < 3; ++k) {
          origin_[k][lane] = rays_.origins[3 * ray + k];
          direction_[k][lane] = rays_.directions[3 * ray + k];
        }
        running_ |= uint32_t{1} << lane;
        return;
      }
      leave(lane);
    }
  }

  void leave(int lane) {
    const int64_t ray = ray_[lane];
    rays_.depth[ray] = walk_.depth[lane];
    rays_.min_sdf[ray] = walk_.min_sdf[lane];
    rays_.min_depth[ray] = walk_.min_depth[lane];
    rays_.state[ray] = walk_.hit[lane] ? 1 : walk_.crossed[lane] ? 2 : 0;
    rays_.queries[ray] = static_cast<int32_t>(walk_.queries[lane]);
  }

  const Rays<T>& rays_;
  const Options<T>& options_;
  int64_t next_, end_;
  uint32_t running_ = 0;  // a bit for each lane that has a ray on its way
  int64_t ray_[kLanes<T>] = {};
  R origin_[3] = {}, direction_[3] = {};
  Walk<R> walk_ = {};
};

template <typename T, typename Field>
const char* trace(const Field& field, const Rays<T>& rays, const Options<T>& options) {
  torch::stable::parallel_for(0, rays.n, kRaysWorthAThread, [&](int64_t begin, int64_t end) {
    Lot<T>(rays, options, begin, end).trace(field);
  });
  return nullptr;
}

}  // namespace

template <typename T>
const char* Cpu::analytic(const Tape<T>& tape, const Rays<T>& rays, const Options<T>& options, void*) {
  return trace(TapeField<T>{tape}, rays, options);
}

template <typename T>
const char* Cpu::grid(const Grid<T>& grid, const Rays<T>& rays, const Options<T>& options, void*) {
  return trace(GridField<T>{grid}, rays, options);
}

#define INSTANTIATE(T)                                                                               \
  template const char* Cpu::analytic(const Tape<T>&, const Rays<T>&, const Options<T>&, void*);      \
  template const char* Cpu::grid(const Grid<T>&, const Rays<T>&, const Options<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace distrender
