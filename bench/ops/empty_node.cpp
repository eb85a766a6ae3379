// Two autograd nodes that compute nothing: five logits in, one scalar out, and gradients that are allocated and not
// written. Their time is what PyTorch's autograd adds to any loss of these inputs.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <type_traits>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

at::Tensor unwritten_like(const at::Tensor& z) { return at::empty(z.sizes(), z.options()); }

struct EmptyNode : torch::autograd::Function<EmptyNode> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList logits) {
    ctx->save_for_backward(logits.vec());
    return at::empty({}, logits[0].options());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& /*upstreams*/) {
    variable_list grads;
    for (const at::Tensor& z : ctx->get_saved_variables()) grads.push_back(unwritten_like(z));
    return grads;
  }
};

// The same without torch::autograd::Function.
struct BareNode final : Node {
  explicit BareNode(at::TensorList logits) : Node(torch::autograd::collect_next_edges(logits)) {
    for (const at::Tensor& z : logits) saved.emplace_back(z, /*is_output=*/false);
  }

  std::string name() const override { return "BareNode"; }

  variable_list apply(variable_list&& /*upstreams*/) override {
    const std::lock_guard lock(mutex_);
    variable_list grads;
    for (const SavedVariable& z : saved) grads.push_back(unwritten_like(z.unpack()));
    return grads;
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& z : saved) z.reset_data();
  }

  std::vector<SavedVariable> saved;
};

at::Tensor empty_node(at::TensorList logits) { return EmptyNode::apply(logits); }

// Pointer: how autograd keeps a node, a std::shared_ptr in older versions of torch, a c10::intrusive_ptr in newer ones.
template <typename T, typename Pointer = decltype(torch::autograd::Edge::function)>
at::Tensor with_node(at::TensorList logits) {
  const at::Tensor loss = at::empty({}, logits[0].options());
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    torch::autograd::set_history(loss, std::make_shared<T>(logits));
  } else {
    torch::autograd::set_history(loss, c10::make_intrusive<T>(logits));
  }
  return loss;
}

}  // namespace

TORCH_LIBRARY(oekd_fast_bench, m) {
  m.def("empty_node(Tensor[] logits) -> Tensor");
  m.def("bare_node(Tensor[] logits) -> Tensor");
}

TORCH_LIBRARY_IMPL(oekd_fast_bench, CompositeImplicitAutograd, m) {
  m.impl("empty_node", empty_node);
  m.impl("bare_node", with_node<BareNode>);
}
