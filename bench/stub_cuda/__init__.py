"""A CUDA device without a GPU, to time what the host does in a call. Nothing is computed: a launch only counts.

    python -m bench.stub_cuda MODULE [arguments of the module]

runs a module in a process where ``torch.device("cuda", 0)`` exists. PyTorch must be built without CUDA. Two small
libraries are compiled with the C++ compiler of the machine, in a temporary folder:

- ``driver.c`` takes the place of libcuda.so.1. Triton compiles its kernels and its own launcher as with a GPU; the
  driver's launch returns at once.
- ``device.cpp`` makes tensors in host memory which say that they are on CUDA. Autograd runs their backward pass in the
  thread of that device.

The few functions of ``torch.cuda`` that a call of a loss needs are replaced by functions that return constants.
"""
