// Tensors through torch's stable ABI: what the ops need beside the members of torch::stable::Tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "cpu/stable/check.h"

namespace oekd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Uninitialised CPU tensors. An allocation that fails raises RuntimeError.
Tensor empty(Sizes sizes, ScalarType dtype);
Tensor empty_images(Sizes sizes, ScalarType dtype);  // [B, C, H, W], channels_last
Tensor empty_like(const Tensor& t);                  // with the strides of torch.empty_like

// Returns `t` as a contiguous tensor of a dtype: itself if it is one, else a copy.
Tensor contiguous(const Tensor& t, ScalarType dtype);

// Whether images [B, C, H, W] are dense and channels_last.
bool is_channels_last(const Tensor& t);

// Returns images [B, C, H, W] as a dense channels_last tensor: `t` itself if it is one, else a copy.
Tensor channels_last(const Tensor& t);

// Returns a view of `t`, whose first element is `offset` elements behind that of `t`.
Tensor view(const Tensor& t, Sizes sizes, Sizes strides, int64_t offset);

// Writes the elements of `from` to `to`, in its dtype. The shapes are equal.
void copy(const Tensor& from, const Tensor& to);

// Evaluates a lazy negation.
Tensor resolve_neg(const Tensor& t);

// Returns the only element of `t`.
double item(const Tensor& t);

bool is_floating(ScalarType dtype);
bool is_integral(ScalarType dtype);  // bool is not

// Returns the device of `t` as torch writes it, like "cuda:0".
std::string device_name(const Tensor& t);

}  // namespace oekd
