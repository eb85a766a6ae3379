// The BatchNorm, residual and ReLU ops on CPU tensors: argument checks, threads, and sums over all rows.
#include "cpu/norm_relu/norm_relu_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/isa.h"
#include "cpu/norm_relu/norm_relu.h"
#include "cpu/stable/boxed.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"

namespace oekd {
namespace {

// Elements in a piece of work. The statistics of rows read a piece twice, so it must fit the second-level cache. A piece
// of many channels is larger, so that the work on its tables remains small. Pieces do not depend on the number of threads, so
// the sums do not either.
constexpr int64_t PIECE = 16384;
constexpr int64_t TILES_OF_A_PIECE = 8;
constexpr int64_t VECTORS_OF_A_TILE = 32;  // at least, so that a table entry is not updated again at once

const char* name_of(ScalarType type) { return type == ScalarType::Float ? "float32" : "bfloat16"; }

// Whether all maps of a call have planes, [B, C, H * W]: x is contiguous and not channels_last. Otherwise they have rows,
// [B * H * W, C].
bool is_planar(const Tensor& x) { return x.is_contiguous() && !is_channels_last(x); }

// Returns a map [B, C, H, W] in the layout of x, copied if necessary.
Tensor dense_map(const char* name, const Tensor& map, const Tensor& x) {
  OEKD_CHECK(map.scalar_type() == x.scalar_type(), name, ": expected ", name_of(x.scalar_type()), ", got ",
             map.scalar_type());
  OEKD_CHECK(map.dim() == 4 && map.sizes().equals(x.sizes()), name, ": expected the shape of x, ", x.sizes(), ", got ",
             map.sizes());
  OEKD_CHECK(map.is_cpu(), name, ": expected a tensor on the CPU, got ", device_name(map));
  check_memory(name, map);
  return is_planar(x) ? contiguous(map, map.scalar_type()) : channels_last(map);
}

Tensor channels_of(const char* name, const Tensor& values, int64_t channels) {
  OEKD_CHECK(values.scalar_type() == ScalarType::Float, name, ": expected float32, got ", values.scalar_type());
  OEKD_CHECK(values.dim() == 1 && values.size(0) == channels, name, ": expected [", channels,
             "], one number for each channel of x, got ", values.sizes());
  OEKD_CHECK(values.is_cpu(), name, ": expected a tensor on the CPU, got ", device_name(values));
  check_memory(name, values);
  return contiguous(values, ScalarType::Float);
}

int64_t count_rows(const Tensor& x, int64_t least) {
  OEKD_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
             "x: expected float32 or bfloat16, got ", x.scalar_type());
  OEKD_CHECK(x.dim() == 4 && x.size(1) > 0, "x: expected [B, C, H, W] with C >= 1, got ", x.sizes());
  const int64_t rows = x.numel() / x.size(1);
  OEKD_CHECK(rows >= least, "x: expected at least ", least, " values for each channel, got ", x.sizes());
  return rows;
}

const NormReLUKernel& kernel_for(const Tensor& x, std::string_view isa) {
  const Isa& chosen = choose_isa(isa);
  const bool fp32 = x.scalar_type() == ScalarType::Float;
  if (is_planar(x)) return fp32 ? chosen.norm_planes_fp32 : chosen.norm_planes_bf16;
  return fp32 ? chosen.norm_relu_fp32 : chosen.norm_relu_bf16;
}

Tensor map_like(const Tensor& x) {
  return is_planar(x) ? empty(x.sizes(), x.scalar_type()) : empty_images(x.sizes(), x.scalar_type());
}

Tensor vector_of(int64_t channels) { return empty({channels}, ScalarType::Float); }

// Floats that start at a cache line, since a vector that crosses lines takes twice as long.
class Floats {
 public:
  explicit Floats(int64_t count) : lines_((count + LINE - 1) / LINE) {}
  float* data() { return reinterpret_cast<float*>(lines_.data()); }
  const float* data() const { return reinterpret_cast<const float*>(lines_.data()); }

 private:
  static constexpr int64_t LINE = 16;
  struct alignas(LINE * sizeof(float)) Line { float values[LINE]; };
  std::vector<Line> lines_;
};

// Division of the rows, or of the images of planes, into pieces, which are distributed to threads, and of pieces of rows
// into tiles, see norm_relu.h.
struct Cut {
  Cut(const NormReLUKernel& kernel, const Tensor& x)
      : planar(is_planar(x)),
        channels(x.size(1)),
        rows(planar ? x.size(0) : x.numel() / channels),
        values(planar ? x.size(2) * x.size(3) : 1),
        tile(planar ? values : kernel.lanes * channels * ((VECTORS_OF_A_TILE + channels - 1) / channels)),
        numbers(planar ? channels : tile),
        sums(planar ? kernel.lanes * channels : tile),
        piece(planar ? std::max<int64_t>(1, PIECE / std::max<int64_t>(1, channels * values))
                     : tile / channels * std::max(TILES_OF_A_PIECE, PIECE / tile)),
        pieces((rows + piece - 1) / piece) {}

  // Returns the table of value(channel).
  template <class Value>
  Floats table(const Value& value) const {
    Floats made(numbers);
    float* const table = made.data();
    for (int64_t c = 0; c < channels; ++c) table[c] = static_cast<float>(value(c));
    for (int64_t p = channels; p < numbers; ++p) table[p] = table[p - channels];
    return made;
  }

  // Calls work(piece, first row, last row + 1, scratch) for each piece, with scratch for `tables` tables of sums.
  template <class Work>
  void run(int64_t tables, const Work& work) const {
    parallel_for("norm_relu", pieces, 1, [&](int64_t begin, int64_t end) {
      Floats scratch(tables * sums);
      for (int64_t i = begin; i < end; ++i) work(i, i * piece, std::min(rows, (i + 1) * piece), scratch.data());
    });
  }

  // Calls work(first row, last row + 1) for each piece from the last to the first, because the rows that `run` read
  // last are still in the cache.
  template <class Work>
  void run_back(const Work& work) const {
    parallel_for("norm_relu", pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = end; i-- > begin;) work(i * piece, std::min(rows, (i + 1) * piece));
    });
  }

  const bool planar;
  // values: number of a channel's values in a row; numbers and sums: floats of a table; piece: in rows.
  const int64_t channels, rows, values, tile, numbers, sums, piece, pieces;
};

// Mean and sum of squared deviations over all rows, [channels] each, combined from those of the pieces.
struct Statistics {
  Statistics(const void* x, const NormReLUKernel& kernel, const Cut& cut)
      : mean(cut.channels), squares(cut.channels) {
    const int64_t channels = cut.channels;
    std::vector<double> means(cut.pieces * channels), distances(cut.pieces * channels);
    cut.run(3, [&](int64_t i, int64_t begin, int64_t end, float* scratch) {
      kernel.statistics(x, channels, cut.tile, begin, end, scratch, &means[i * channels], &distances[i * channels]);
    });
    const auto share = [&](int64_t i) {
      return static_cast<double>(std::min(cut.piece, cut.rows - i * cut.piece) * cut.values);
    };
    for (int64_t i = 0; i < cut.pieces; ++i) {
      for (int64_t c = 0; c < channels; ++c) mean[c] += share(i) * means[i * channels + c];
    }
    for (double& m : mean) m /= static_cast<double>(cut.rows * cut.values);
    for (int64_t i = 0; i < cut.pieces; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        const double apart = means[i * channels + c] - mean[c];
        squares[c] += distances[i * channels + c] + share(i) * apart * apart;
      }
    }
  }

  std::vector<double> mean, squares;
};

// The checked arguments of a forward pass.
struct Forward {
  Forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const OptionalTensor& residual, double eps,
          bool relu, std::string_view isa)
      : map(dense_map("x", x, x)),
        weight(channels_of("weight", weight, x.size(1))),
        bias(channels_of("bias", bias, x.size(1))),
        relu(relu),
        kernel(kernel_for(map, isa)),
        cut(kernel, map) {
    OEKD_CHECK(eps > 0 && std::isfinite(eps), "eps: expected a finite number > 0, got ", eps);
    OEKD_CHECK(relu || !residual, "residual: expected None where relu is false, got a tensor");
    if (residual) added = dense_map("residual", *residual, x);
  }

  // Returns y for the mean and the reciprocal standard deviation of each channel.
  Tensor normalised(const float* mean, const float* rstd) const {
    const float *const w = weight.const_data_ptr<float>(), *const b = bias.const_data_ptr<float>();
    const Floats mean_table = cut.table([&](int64_t c) { return mean[c]; });
    const Floats scale_table = cut.table([&](int64_t c) { return w[c] * rstd[c]; });
    const Floats bias_table = cut.table([&](int64_t c) { return b[c]; });
    Tensor y = map_like(map);
    NormForward problem{};
    problem.channels = cut.channels;
    problem.tile = cut.tile;
    problem.x = map.const_data_ptr();
    problem.residual = added ? added->const_data_ptr() : nullptr;
    problem.y = y.mutable_data_ptr();
    problem.relu = relu;
    problem.mean = mean_table.data();
    problem.scale = scale_table.data();
    problem.bias = bias_table.data();
    cut.run_back([&](int64_t begin, int64_t end) { kernel.forward(problem, begin, end); });
    return y;
  }

  const Tensor map, weight, bias;
  OptionalTensor added;
  const bool relu;
  const NormReLUKernel& kernel;
  const Cut cut;
};

// Returns y, mean, variance and rstd.
std::array<Tensor, 4> forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                              double eps, bool relu, std::string_view isa) {
  const int64_t rows = count_rows(x, 2), channels = x.size(1);
  const Forward call(x, weight, bias, residual, eps, relu, isa);
  const Statistics statistics(call.map.const_data_ptr(), call.kernel, call.cut);
  Tensor mean = vector_of(channels), variance = vector_of(channels), rstd = vector_of(channels);
  float *const means = mean.mutable_data_ptr<float>(), *const rstds = rstd.mutable_data_ptr<float>();
  float* const variances = variance.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    means[c] = static_cast<float>(statistics.mean[c]);
    variances[c] = static_cast<float>(statistics.squares[c] / static_cast<double>(rows - 1));
    rstds[c] = static_cast<float>(1 / std::sqrt(statistics.squares[c] / static_cast<double>(rows) + eps));
  }
  return {call.normalised(means, rstds), mean, variance, rstd};
}

// Returns y for the given mean and variance of each channel.
Tensor forward_with(const Tensor& x, const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                    const Tensor& mean, const Tensor& variance, double eps, bool relu, std::string_view isa) {
  count_rows(x, 1);
  const int64_t channels = x.size(1);
  const Forward call(x, weight, bias, residual, eps, relu, isa);
  const Tensor means = channels_of("mean", mean, channels), variances = channels_of("variance", variance, channels);
  const float* const v = variances.const_data_ptr<float>();
  std::vector<float> rstds(channels);
  for (int64_t c = 0; c < channels; ++c) rstds[c] = static_cast<float>(1 / std::sqrt(double{v[c]} + eps));
  return call.normalised(means.const_data_ptr<float>(), rstds.data());
}

// Returns dx, dweight, dbias and dresidual.
std::array<Tensor, 4> backward(const Tensor& dy, const Tensor& x, const OptionalTensor& y, const Tensor& weight,
                               const Tensor& bias, const Tensor& mean, const Tensor& rstd, bool residual_grad, bool relu,
                               std::string_view isa) {
  const int64_t rows = count_rows(x, 1), channels = x.size(1);
  OEKD_CHECK(y || !residual_grad, "y: expected a tensor where residual_grad is true, got None");
  OEKD_CHECK(relu || !y, "y: expected None where relu is false, got a tensor");
  const Tensor upstream = dense_map("dy", dy, x), map = dense_map("x", x, x);
  const OptionalTensor output = y ? OptionalTensor(dense_map("y", *y, x)) : std::nullopt;
  const Tensor scales = channels_of("weight", weight, channels), biases = channels_of("bias", bias, channels);
  const Tensor means = channels_of("mean", mean, channels), rstds = channels_of("rstd", rstd, channels);
  const NormReLUKernel& kernel = kernel_for(map, isa);
  const Cut cut(kernel, map);

  Tensor dx = map_like(map), dweight = vector_of(channels), dbias = vector_of(channels);
  Tensor dresidual = residual_grad ? map_like(map) : empty({0}, x.scalar_type());
  const float *const m = means.const_data_ptr<float>(), *const r = rstds.const_data_ptr<float>();
  const float *const w = scales.const_data_ptr<float>(), *const b = biases.const_data_ptr<float>();
  const Floats mean_table = cut.table([&](int64_t c) { return m[c]; });
  const Floats scale_table = cut.table([&](int64_t c) { return w[c] * r[c]; });
  const Floats bias_table = cut.table([&](int64_t c) { return b[c]; });
  NormBackward problem{};
  problem.channels = channels;
  problem.tile = cut.tile;
  problem.dy = upstream.const_data_ptr();
  problem.x = map.const_data_ptr();
  problem.y = output ? output->const_data_ptr() : nullptr;
  problem.g = residual_grad ? dresidual.mutable_data_ptr() : nullptr;
  problem.dx = dx.mutable_data_ptr();
  problem.relu = relu;
  problem.mean = mean_table.data();
  problem.scale = scale_table.data();
  problem.bias = bias_table.data();

  std::vector<double> g(channels), g_x(channels), g_pieces(cut.pieces * channels);
  std::vector<double> g_x_pieces(cut.pieces * channels);
  cut.run(2, [&](int64_t i, int64_t begin, int64_t end, float* scratch) {
    kernel.gradient_sums(problem, begin, end, scratch, &g_pieces[i * channels], &g_x_pieces[i * channels]);
  });
  for (int64_t i = 0; i < cut.pieces; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      g[c] += g_pieces[i * channels + c];
      g_x[c] += g_x_pieces[i * channels + c];
    }
  }
  float *const dbiases = dbias.mutable_data_ptr<float>(), *const dweights = dweight.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    dbiases[c] = static_cast<float>(g[c]);
    dweights[c] = static_cast<float>(g_x[c] * r[c]);
  }

  // dx = weight * rstd * (g - mean(g) - xhat * mean(g * xhat)), with xhat = (x - mean) * rstd and means over the rows.
  const double per_row = 1 / static_cast<double>(rows);
  const auto scaled = [&](int64_t c, double sum) { return double{w[c]} * r[c] * sum * per_row; };
  const Floats slope = cut.table([&](int64_t c) { return scaled(c, g_x[c]) * r[c] * r[c]; });
  const Floats offset = cut.table([&](int64_t c) { return scaled(c, g[c]); });
  problem.slope = slope.data();
  problem.offset = offset.data();
  cut.run_back([&](int64_t begin, int64_t end) { kernel.gradient(problem, begin, end); });
  return {dx, dweight, dbias, dresidual};
}

}  // namespace

void norm_relu(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), weight = arguments.tensor(), bias = arguments.tensor();
  const OptionalTensor residual = arguments.optional_tensor();
  const double eps = arguments.number();
  const bool relu = arguments.flag();
  const std::string isa = arguments.text();
  const auto [y, mean, variance, rstd] = forward(x, weight, bias, residual, eps, relu, isa);
  reply(stack, y, mean, variance, rstd);
}

void norm_relu_with(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), weight = arguments.tensor(), bias = arguments.tensor();
  const OptionalTensor residual = arguments.optional_tensor();
  const Tensor mean = arguments.tensor(), variance = arguments.tensor();
  const double eps = arguments.number();
  const bool relu = arguments.flag();
  const std::string isa = arguments.text();
  reply(stack, forward_with(x, weight, bias, residual, mean, variance, eps, relu, isa));
}

void norm_relu_backward(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor dy = arguments.tensor(), x = arguments.tensor();
  const OptionalTensor y = arguments.optional_tensor();
  const Tensor weight = arguments.tensor(), bias = arguments.tensor();
  const Tensor mean = arguments.tensor(), rstd = arguments.tensor();
  const bool residual_grad = arguments.flag(), relu = arguments.flag();
  const std::string isa = arguments.text();
  const auto [dx, dweight, dbias, dresidual] =
      backward(dy, x, y, weight, bias, mean, rstd, residual_grad, relu, isa);
  reply(stack, dx, dweight, dbias, dresidual);
}

}  // namespace oekd
