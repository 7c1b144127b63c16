// Tracing on a CPU: a lane a ray. A tape's instruction is decoded once for all lanes of a step, and lanes whose
// rays have ended take the next ones.
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
      : rays_(rays), options_(options), next_(begin), end_(end) {}

  template <typename Field>
  void trace(const Field& field) {
    for (fill(); running_; fill()) {
      const R f = field.at(R(origin_[0] + walk_.t * direction_[0]), R(origin_[1] + walk_.t * direction_[1]),
                           R(origin_[2] + walk_.t * direction_[2]));
      uint32_t ended = running_ & ~bits_of(walk_.take(f, options_));
      running_ &= ~ended;
      for (; ended; ended &= ended - 1) write(std::countr_zero(ended));
    }
  }

 private:
  using R = Lanes<T>;
  static constexpr uint32_t kAll = (uint32_t{1} << kLanes<T>) - 1;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity(), kNan = std::numeric_limits<T>::quiet_NaN();

  // Gives rays to idle lanes, once there are so many that it is worth while. Lanes without one go on with whatever
  // they hold: nobody looks at it.
  void fill() {
    const uint32_t idle = kAll & ~running_;
    if (std::popcount(idle) < 3 * kLanes<T> / 8 || next_ == end_) return;
    uint32_t fresh = 0;
    for (uint32_t lanes = idle; lanes && next_ < end_; ++next_) {
      if (rays_.start[next_] < rays_.far[next_]) {
        place_[std::countr_zero(lanes)] = static_cast<Place>(next_);
        fresh |= lanes & -lanes;
        lanes &= lanes - 1;
      } else {
        miss(next_);
      }
    }
    running_ |= fresh;
    const Mask<R> begins = mask_of<R>(fresh);
    const Index<R> at = papershelf::load<Index<R>>(place_);
    const auto set = [&](R& to, const R& value) { to = begins ? value : to; };
    const auto from = [&](const T* numbers, const Index<R>& where) { return Kind<R>::gather(numbers, where); };
    set(walk_.t, from(rays_.start, at));
    set(walk_.expected, from(rays_.slope, at));
    set(walk_.min_depth, from(rays_.near, at));
    set(walk_.first, walk_.min_depth - options_.slack);
    set(walk_.far, from(rays_.far, at));
    for (int k = 0; k < 3; ++k) {
      set(origin_[k], from(rays_.origins + k, 3 * at));
      set(direction_[k], from(rays_.directions + k, 3 * at));
    }
    for (R* unknown : {&walk_.last_t, &walk_.last_f, &walk_.out_t, &walk_.out_f, &walk_.in_t, &walk_.in_f})
      set(*unknown, all<R>(kNan));
    for (R* zero : {&walk_.tries, &walk_.queries}) set(*zero, all<R>(0));
    for (R* none : {&walk_.depth, &walk_.min_sdf}) set(*none, all<R>(kInfinity));
    walk_.hit &= ~begins, walk_.crossed &= ~begins;
  }

  void write(int lane) {
    const int64_t ray = place_[lane];
    rays_.depth[ray] = walk_.depth[lane];
    rays_.min_sdf[ray] = walk_.min_sdf[lane];
    rays_.min_depth[ray] = walk_.min_depth[lane];
    rays_.state[ray] = walk_.hit[lane] ? 1 : walk_.crossed[lane] ? 2 : 0;
    rays_.queries[ray] = static_cast<int32_t>(walk_.queries[lane]);
  }

  // A ray that does not meet the ball, or begins behind it.
  void miss(int64_t ray) {
    rays_.depth[ray] = rays_.min_sdf[ray] = kInfinity;
    rays_.min_depth[ray] = rays_.near[ray];
    rays_.state[ray] = 0, rays_.queries[ray] = 0;
  }

  using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  const Rays<T>& rays_;
  const Options<T>& options_;
  int64_t next_, end_;
  uint32_t running_ = 0;         // a bit for each lane that has a ray on its way
  Place place_[kLanes<T>] = {};  // which ray that is
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

template <typename T>
const char* Cpu::bricks(const Bricks<T>& bricks, const Rays<T>& rays, const Options<T>& options, void*) {
  return trace(BrickField<T>{bricks}, rays, options);
}

#define INSTANTIATE(T)                                                                               \
  template const char* Cpu::analytic(const Tape<T>&, const Rays<T>&, const Options<T>&, void*);      \
  template const char* Cpu::grid(const Grid<T>&, const Rays<T>&, const Options<T>&, void*);          \
  template const char* Cpu::bricks(const Bricks<T>&, const Rays<T>&, const Options<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace distrender
