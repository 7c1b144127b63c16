// A step of a march on a CPU: rays on all threads, then one pass that packs those which go on.
#include <torch/csrc/stable/ops.h>

#include "march_math.h"

namespace distrender {
namespace {

constexpr int64_t kRaysWorthAThread = 2048;

}  // namespace

template <typename T>
const char* MarchCpu::step(const March<T>& march, const Options<T>& options, const Step<T>& step, void*) {
  torch::stable::parallel_for(0, step.count, kRaysWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) step.fates[i] = advance(march, options, step, static_cast<int32_t>(i));
  });
  int32_t next = 0;
  for (const Fate fate : {kExact, kRough}) {
    const int32_t first = next;
    for (int32_t i = 0; i < step.count; ++i)
      if (step.fates[i] == fate) {
        step.next_rays[next] = step.rays[i];
        point_of(march, step.rays[i], step.next_points + 3 * static_cast<int64_t>(next++));
      }
    step.next_counts[fate == kRough] = next - first;
  }
  return nullptr;
}

template const char* MarchCpu::step(const March<float>&, const Options<float>&, const Step<float>&, void*);
template const char* MarchCpu::step(const March<double>&, const Options<double>&, const Step<double>&, void*);

}  // namespace distrender
