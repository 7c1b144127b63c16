// The whole march through a decoder on a GPU. A block has as many rays as points fit its tile: the tile is evaluated
// (decoder_tile.h), every ray takes its value in and moves (trace_math.h), and places whose rays have ended take the
// next ones that wait. So nothing is written between steps, and tiles stay full until the last rays are on their way.
//
// In halves first, as long as values are large; what comes near the surface is put on a list, from which the second
// kernel, in float, takes its rays and finishes them. Plain pointers, no PyTorch: march_decoder.cpp allocates.
#include "decoder_launch.h"
#include "march_decoder.h"
#include "march_math.h"

namespace distrender {
namespace {

constexpr unsigned kAll = 0xffffffffu;

struct Leaving {
  float below;  // |f| at which rays leave the kernel in halves
  int32_t *rays, *count;
};

struct Place {
  int32_t ray;  // -1: none
  Walk<float> walk;
  float origin[3], direction[3];
};

template <typename E, int Points>
__global__ void __launch_bounds__(kMostWarps * 32)
    march_kernel(const __grid_constant__ CudaNetwork<E> network, const March<float> march,
                 const Options<float> options, const Waiting waiting, const Leaving leaving) {
  constexpr uint32_t kGroups = Points / 32;
  DYNAMIC_SHARED(memory);
  __shared__ unsigned alive[kGroups];
  Tile<E, Points> tile(network, memory);
  Place* const places = reinterpret_cast<Place*>(tile.own());
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int32_t n = waiting.count ? *waiting.count : waiting.n;
  for (uint32_t i = threadIdx.x; i < Points; i += blockDim.x) places[i].ray = -1, tile.points[i] = float4{0, 0, 0, 0};
  __syncthreads();

  bool more = true;  // the same for a warp
  for (;;) {
    for (uint32_t group = warp; group < kGroups; group += warps) {
      Place& place = places[32 * group + lane];
      if (place.ray >= 0) {
        const float f = tile.distances[32 * group + lane];
        bool on, small = false;
        if constexpr (!std::is_same_v<E, float>) small = !(magnitude(f) >= leaving.below);
        if (small) {
          on = false;
          leaving.rays[atomicAdd(leaving.count, 1)] = place.ray;
        } else {
          on = place.walk.take(f, options);
        }
        if (!on) keep(place.walk, march, place.ray), place.ray = -1;
      }

      const unsigned idle = __ballot_sync(kAll, place.ray < 0);
      if (more && idle) {
        const int32_t wanted = __popc(idle);
        int32_t first = 0;
        if (lane == 0) first = atomicAdd(waiting.taken, wanted);
        first = __shfl_sync(kAll, first, 0);
        more = first + wanted < n;
        const int32_t own = first + __popc(idle & ((1u << lane) - 1));
        if (place.ray < 0 && own < n) {
          const int32_t ray = waiting.rays[own];
          place.ray = ray, place.walk = walk_of(march, options, ray);
          for (int k = 0; k < 3; ++k) {
            place.origin[k] = march.origins[3 * static_cast<int64_t>(ray) + k];
            place.direction[k] = march.directions[3 * static_cast<int64_t>(ray) + k];
          }
        }
      }
      if (place.ray >= 0) {
        const float t = place.walk.t;
        tile.points[32 * group + lane] =
            float4{place.origin[0] + t * place.direction[0], place.origin[1] + t * place.direction[1],
                   place.origin[2] + t * place.direction[2], 0};
      }
      const unsigned running = __ballot_sync(kAll, place.ray >= 0);
      if (lane == 0) alive[group] = running;
    }
    __syncthreads();
    unsigned any = 0;
    for (uint32_t group = 0; group < kGroups; ++group) any |= alive[group];
    if (!any) break;
    tile.evaluate();
  }
  finish_copies();  // of weights that nobody will want
}

__global__ void __launch_bounds__(3) clear_kernel(int32_t* numbers) { numbers[threadIdx.x] = 0; }

template <typename E, int Points>
const char* launch(const CudaNetwork<E>& network, const March<float>& march, const Options<float>& options,
                   const Waiting& waiting, const Leaving& leaving, void* stream) {
  const auto kernel = march_kernel<E, Points>;
  const size_t bytes = Tile<E, Points>::bytes(network.warps, Points * sizeof(Place));
  unsigned blocks = 0;
  if (const char* error = blocks_for(kernel, network.warps, bytes, (int64_t{waiting.n} + Points - 1) / Points, blocks))
    return error;
  LAUNCH_SHARED(kernel, blocks, network.warps * 32, bytes, stream, network, march, options, waiting, leaving);
  return launch_error();
}

template <typename E>
const char* march_through(const Network<E>& from, const March<float>& march, const Options<float>& options,
                          const Waiting& waiting, const Leaving& leaving, void* stream) {
  CudaNetwork<E> network{};
  if (const char* error = describe(from, network)) return error;
  return wants_small_tiles<E>(network.warps, waiting.n, 64 * sizeof(Place))
             ? launch<E, 32>(network, march, options, waiting, leaving, stream)
             : launch<E, 64>(network, march, options, waiting, leaving, stream);
}

}  // namespace

const char* MarchDecoderCuda::run(const March<float>& march, const Options<float>& options, const int32_t* rays,
                                  int32_t n, const Network<float>& exact, const Network<papershelf::Half>* rough,
                                  float rough_above, int32_t* room, void* stream) {
  LAUNCH(clear_kernel, 1, 3, stream, room);
  int32_t *left = room, *taken = room + 1, *list = room + 3;
  if (n == 0) return launch_error();
  if (!rough) return march_through(exact, march, options, {rays, n, nullptr, taken}, {}, stream);
  if (const char* error =
          march_through(*rough, march, options, {rays, n, nullptr, taken}, {rough_above, list, left}, stream))
    return error;
  return march_through(exact, march, options, {list, n, left, taken + 1}, {}, stream);
}

}  // namespace distrender
