// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "bias_act_walk.h"
#include "math.h"

namespace gankernels::bias_act::cpu::GK_ISA {
namespace {

template <class T>
using Of = Constants<AccumulatorT<T>>;

// Passes over a block. Which order, and which tensors are where:  forward x -> y

template <class T, Activation kAct>
void forward_block(Block<T> b, Of<T> k) {
  for_each_register<T, 1, 1, false>(b, [=]<class V>(const V* in, V bias, V, V* out) GK_LAMBDA_INLINE {
    out[0] = bias_act::forward<kAct, Math>(in[0] + bias, k);
    return V{};
  });
}

// x, dy -> dx
template <class T, Activation kAct>
void backward_block(Block<T> b, Of<T> k) {
  for_each_register<T, 2, 1, true>(b, [=]<class V>(const V* in, V bias, V, V* out) GK_LAMBDA_INLINE {
    out[0] = bias_act::backward<kAct, Math>(in[0] + bias, in[1], k);
    return out[0];
  });
}

// x, ddx, dy -> ddy, dx; or x, ddx -> ddy where the activation is piecewise linear
template <class T, Activation kAct>
void backward_backward_block(Block<T> b, Of<T> k) {
  constexpr bool smooth = !is_piecewise_linear(kAct);
  for_each_register<T, smooth ? 3 : 2, smooth ? 2 : 1, smooth>(
      b, [=]<class V>(const V* in, V bias, V ddbias, V* out) GK_LAMBDA_INLINE {
        const V z = in[0] + bias, a = in[1] + ddbias;
        out[0] = bias_act::second_ddy<kAct, Math>(z, a, k);
        if constexpr (smooth) {
          out[1] = bias_act::second_dz<kAct, Math>(z, a, in[2], k);
          return out[1];
        } else {
          return V{};
        }
      });
}

template <class T, Activation kAct>
void forward(const Forward& args, int64_t begin, int64_t end) {
  const Block<T> tensors = {.in = {static_cast<const T*>(args.x)}, .out = {static_cast<T*>(args.y)}};
  Walk<T>(args.problem, tensors, args.bias, nullptr, nullptr, forward_block<T, kAct>).tiles(begin, end);
}

// Where x is null nothing depends on it, and what stands in its place does not matter.
template <class T, Activation kAct>
void backward(const Backward& args, void* partial, int64_t begin, int64_t end) {
  const T *dy = static_cast<const T*>(args.dy), *x = args.x ? static_cast<const T*>(args.x) : dy;
  const Block<T> tensors = {.in = {x, dy}, .out = {static_cast<T*>(args.dx)}};
  Walk<T>(args.problem, tensors, args.bias, nullptr, partial, backward_block<T, kAct>).tiles(begin, end);
}

template <class T, Activation kAct>
void backward_backward(const BackwardBackward& args, void* partial, int64_t begin, int64_t end) {
  constexpr bool smooth = !is_piecewise_linear(kAct);
  const T *ddx = static_cast<const T*>(args.ddx), *x = args.x ? static_cast<const T*>(args.x) : ddx;
  Block<T> tensors = {.in = {x, ddx}, .out = {static_cast<T*>(args.ddy)}};
  if (smooth) tensors.in[2] = static_cast<const T*>(args.dy), tensors.out[1] = static_cast<T*>(args.dx);
  Walk<T>(args.problem, tensors, args.bias, args.ddbias, smooth ? partial : nullptr, backward_backward_block<T, kAct>)
      .tiles(begin, end);
}

template <class T, Activation kAct>
constexpr Passes kPasses = {forward<T, kAct>, backward<T, kAct>, backward_backward<T, kAct>};

#define GK_ROW(T)                                                                                           \
  {kPasses<T, Activation::kNone>,     kPasses<T, Activation::kRelu>,    kPasses<T, Activation::kLeakyRelu>, \
   kPasses<T, Activation::kTanh>,     kPasses<T, Activation::kSigmoid>, kPasses<T, Activation::kSilu>,      \
   kPasses<T, Activation::kSoftplus>, kPasses<T, Activation::kGelu>}

}  // namespace

extern const Table table = {GK_ROW(float), GK_ROW(double), GK_ROW(BFloat16), GK_ROW(Float16)};

}  // namespace gankernels::bias_act::cpu::GK_ISA
